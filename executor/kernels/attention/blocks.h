// The blocks that attention is made of, and what an instruction set provides for them.
//
// Scores are computed transposed, S^T[key][query] = K Q^T, with queries in the lanes of vectors:
// then rows of K, V, dO and Q are read as they lie, maxima and sums are vertical, and P^T is
// what the product with V needs. Only Q and, backward, dO are transposed first.
//
// Queries are taken in blocks of kQueryBlock, which consist of panels as wide as the score tile of
// the instruction set; keys in blocks of kKeyBlock.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ir/type.h"
#include "reference/attention_problem.h"

namespace autosp::executor::attention {

inline constexpr int64_t kQueryBlock = 96;  // a multiple of every panel
inline constexpr int64_t kKeyBlock = 96;
inline constexpr int64_t kLanes = 16;  // floats of a row are padded to a multiple

inline constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// What a row (a query of a batch) is besides the interval of keys it sees.
enum class RowKind : uint8_t {
  kNormal,
  kEmpty,     // dead: sees nothing, weighs nothing; also rows that only fill up a block
  kUniform,   // dead: every key weighs the same
  kUnmasked,  // dead: key mask and segments do not count
  kNan,       // dead: every weight is NaN
};

// The panel's queries together.
struct Panel {
  int32_t begin = 0;  // keys that some query sees
  int32_t end = 0;
  int32_t full_begin = 0;  // keys that every query's interval holds
  int32_t full_end = 0;
  bool special = false;  // some row is neither normal nor empty
};

// Masks, made up for blocks. Arrays per batch, padded to whole query blocks with empty rows.
struct Rows {
  const float* begin = nullptr;  // [batch][padded queries]: of the interval, as float
  const float* end = nullptr;
  const RowKind* kind = nullptr;
  const float* query_segment = nullptr;  // as small numbers; null without segments
  const float* key_segment = nullptr;    // [batch][keys]
  const Panel* panels = nullptr;         // [batch][panels]
  int64_t queries = 0;                   // padded
  int64_t num_panels = 0;                // per batch
};

// A dense [batch, heads, rows, width] array of one of the types below, as the graph holds it.
struct Array {
  std::byte* data = nullptr;
  ir::DataType type = ir::DataType::kFloat32;
  int64_t heads = 0;
  int64_t rows = 0;
  int64_t width = 0;

  std::byte* at(int64_t b, int64_t h, int64_t r) const {
    const auto size = static_cast<int64_t>(ir::element_size(type));
    return data + ((b * heads + h) * rows + r) * width * size;
  }
  // Whether rows are what the blocks compute with: floats, whole vectors of them. Others are
  // widened, block by block.
  bool is_plain() const { return type == ir::DataType::kFloat32 && width % kLanes == 0; }
};

struct Problem {
  reference::AttentionProblem sizes;
  // Of queries, keys, values, bias, sink and their gradients: float32, bfloat16 or float16.
  ir::DataType type = ir::DataType::kFloat32;
  Rows rows;
  int64_t width = 0;        // padded
  int64_t value_width = 0;  // padded
  Array query;
  Array key;
  Array value;
  Array output;                 // forward: written; else read
  const float* sink = nullptr;  // [query heads]
  float* row_max = nullptr;
  float* row_sum = nullptr;
  const uint16_t* packed_values = nullptr;  // see Functions::pack
  // Backward.
  Array output_gradient;
  float* bias_gradient = nullptr;
};

// One query head of the backward pass, prepared once and read by every key block.
struct Head {
  int64_t batch = 0;
  int64_t head = 0;                  // of the query
  float* query = nullptr;            // scaled and transposed, by block: [width][kQueryBlock]
  float* output_gradient = nullptr;  // likewise
  float* max = nullptr;              // [padded queries]
  float* inverse_sum = nullptr;      // likewise
  float* delta = nullptr;            // likewise
  float* query_gradient = nullptr;   // [queries][width], added to
  float* key_gradient = nullptr;     // of its KV head: [keys][width], added to
  float* value_gradient = nullptr;   // [keys][value width], added to
  bool first = false;  // of its KV head's group: key and value gradients start at zero
};

struct Functions {
  const char* name;
  int panel;  // queries per panel
  // Floats of scratch memory for the functions below.
  int64_t (*forward_scratch)(const Problem&);
  int64_t (*backward_scratch)(const Problem&);
  // Output and statistics of one query block of one head.
  void (*forward)(const Problem&, int64_t batch, int64_t head, int64_t query_block, float* scratch);
  // Fills in one query block of the head: all but the gradients.
  void (*prepare)(const Problem&, const Head&, int64_t query_block, float* scratch);
  // What the keys of one block have to do with one head: adds to its query gradient, and to the
  // key and value gradients of its KV head.
  void (*backward)(const Problem&, const Head&, int64_t key_block, float* scratch);
  // Rows of padded width to one head of an array, rounded to its type.
  void (*store)(const Array&, int64_t batch, int64_t head, const float* rows);
  // What `forward` needs of the values in another order: the elements of one block of keys, and
  // what writes them to Problem::packed_values, block by block and head by head. Null if nothing.
  int64_t (*packed_block)(const Problem&) = nullptr;
  void (*pack)(const Problem&, int64_t batch, int64_t kv_head, int64_t key_block,
               uint16_t* packed) = nullptr;
};

// Null where the processor (or this build) lacks the instructions.
const Functions* amx_functions();  // of bfloat16 only
const Functions* avx512_functions();
const Functions* avx2_functions();
const Functions* portable_functions();

// The fastest for a type.
const Functions& best_functions(ir::DataType type);

}  // namespace autosp::executor::attention
