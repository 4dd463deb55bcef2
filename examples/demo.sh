#!/bin/sh
# The main job, end to end, on a real model; `make demo` runs it. Each line is a command you can type yourself.
set -eu
cd "$(dirname "$0")"

say() { printf '\n$ %s\n' "$*"; "$@"; }

say tea-models engine
say tea-models pull smollm2-135m
say tea-models inspect smollm2-135m
say tea-models profile smollm2-135m --output "${TMPDIR:-/tmp}/smollm2-135m.profile.json"
say tea-models plan smollm2-135m
say tea-runtime run local-chat.yaml
