# What the test scripts beside this one share; they source it first, with their subject in `subject`.
#
# --require makes what is missing an error, --help prints the head of the script. Other arguments are in `arguments`;
# a script that takes none says so with `takes_no_arguments`. `folder` is cargo's target folder.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never

required=
arguments=()
for argument in "$@"; do
  case $argument in
  --require) required=1 ;;
  -h | --help)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "tests/$(basename "$0")"
    exit 0
    ;;
  *) arguments+=("$argument") ;;
  esac
done

takes_no_arguments() {
  [ ${#arguments[@]} -eq 0 ] && return
  echo "tests/$(basename "$0") does not know ${arguments[0]}: it takes --require and --help" >&2
  exit 2
}

# Says what keeps the subject from being run, and ends the script.
missing() {
  echo "NOT RUN: $subject: $1" >&2
  [ -z "$required" ] || exit 1
  exit 0
}

command -v cargo >/dev/null || missing "cargo is missing"
folder=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
