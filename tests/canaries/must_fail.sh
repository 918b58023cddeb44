#!/bin/sh
# must_fail.sh TEXT COMMAND...
# Passes if the command fails and says TEXT: before a checker is believed, it has to find what was planted.
text=$1
shift
if output=$("$@" 2>&1); then
  printf '%s\nThis had to fail with "%s", but it passed: %s\n' "$output" "$text" "$*" >&2
  exit 1
fi
case $output in
  *"$text"*) printf 'found, as it must be: %s\n' "$text" ;;
  *)
    printf '%s\nThis failed, but not with "%s": %s\n' "$output" "$text" "$*" >&2
    exit 1
    ;;
esac
