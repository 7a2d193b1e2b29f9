"""Training in numpy: what `train` has to come to. Losses and gradients are stock ONNX Runtime's, of the whole graph."""

import numpy as np
from training_graph import TrainingGraph


def batches_of(graph: TrainingGraph, sizes, count):
    """{input: [count, ...]} of data, no two batches alike, the last one with fewer valid labels; and {parameter}."""
    inputs = graph.inputs(sizes)
    gradients = {value.name for value in graph.model.graph.output}
    trained = {name for name in inputs if f"{name}.grad" in gradients or f"{name}_grad" in gradients}
    parameters = {name: array for name, array in inputs.items() if name in trained}
    data = {}
    for name, array in inputs.items():
        if name in parameters:
            continue
        rolled = name in ("input_ids", "labels")
        data[name] = np.stack([np.roll(array, 3 * k, axis=-1) if rolled else array for k in range(count)])
    if "labels" in data:
        data["labels"][-1, ..., : data["labels"].shape[-1] // 2] = -100
    return data, parameters


class Reference:
    """A training run of the whole graph; gradients are means over all valid tokens of an update's micro-batches."""

    def __init__(self, graph, parameters, update, accumulate=1, clip_norm=None):
        self.graph, self.parameters, self.update = graph, dict(parameters), update
        self.accumulate, self.clip_norm = accumulate, clip_norm
        self.state = {name: {} for name in parameters}
        self.losses, self.gradients, self.norms = [], [], []

    def step(self, micro_batches):
        sums, loss, tokens = {}, 0.0, 0
        for batch in micro_batches:
            outputs = self.graph.step({**self.parameters, **batch})
            valid = int((batch["labels"][..., 1:] != -100).sum()) if len(micro_batches) > 1 else 1
            if valid == 0:  # of no tokens loss and gradients are NaN
                continue
            loss += valid * float(outputs["loss"])
            tokens += valid
            for name in self.parameters:
                gradient = valid * outputs[f"{name}.grad"].astype(np.float64)
                sums[name] = sums.get(name, 0) + gradient
        gradients = {name: total / tokens for name, total in sums.items()}
        norm = np.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        self.losses.append(loss / tokens)
        self.gradients.append(gradients)
        self.norms.append(norm)
        scale = min(1.0, self.clip_norm / (norm + 1e-6)) if self.clip_norm else 1.0
        for name, gradient in gradients.items():
            weight = self.parameters[name].astype(np.float64)
            weight = self.update(weight, scale * gradient, self.state[name], len(self.losses))
            self.parameters[name] = weight.astype(self.parameters[name].dtype)

    def run(self, data, steps):
        count = len(next(iter(data.values())))
        for step in range(steps):
            picked = [(step * self.accumulate + k) % count for k in range(self.accumulate)]
            self.step([{name: array[k] for name, array in data.items()} for k in picked])
        return self


def sgd(rate, momentum=0.0, decay=0.0):
    """As PyTorch has it."""

    def update(weight, gradient, state, step):
        gradient = gradient + decay * weight
        velocity = momentum * state.get("velocity", 0.0) + gradient
        state["velocity"] = velocity
        return weight - rate * velocity

    return update


def adam(rate, beta1=0.9, beta2=0.999, epsilon=1e-8, decay=0.0, decoupled=False, decay_after=False):
    """As ONNX has it: epsilon is added before the bias of the squares is corrected."""

    def update(weight, gradient, state, step):
        if decoupled:
            weight = weight * (1 - rate * decay)
        elif not decay_after:
            gradient = gradient + decay * weight
        mean = beta1 * state.get("mean", 0.0) + (1 - beta1) * gradient
        square = beta2 * state.get("square", 0.0) + (1 - beta2) * gradient**2
        state.update(mean=mean, square=square)
        corrected = rate * np.sqrt(1 - beta2**step) / (1 - beta1**step)
        weight = weight - corrected * mean / (np.sqrt(square) + epsilon)
        return weight * (1 - rate * decay) if decay_after else weight

    return update


def adagrad(rate, epsilon=1e-8):
    def update(weight, gradient, state, step):
        state["squares"] = state.get("squares", 0.0) + gradient**2
        return weight - rate * gradient / (np.sqrt(state["squares"]) + epsilon)

    return update
