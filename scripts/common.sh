# Sourced by every script here: strict mode, the repository's root as working directory, and an
# environment in which a bare machine (no locale, root, one node) behaves like any other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export LC_ALL=C.UTF-8
export CCACHE_BASEDIR="$PWD" CCACHE_NOHASHDIR=1

# Open MPI refuses root and more ranks than cores unless told otherwise; containers have both.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
