#!/bin/sh
# Make the lock files: `make lock`.  Hashes, no index or find-links lines.
# torch is left to its plain pin in torch.txt, so that each machine may take the build it wants; what torch needs on
# every machine (torch-needs.in) is locked, what only its CUDA build needs comes with that build.
set -eu
overrides=$(mktemp)
trap 'rm -f "$overrides"' EXIT
echo "torch ; sys_platform == 'never'" > "$overrides"
compile() {
    out=$1
    shift
    uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --quiet \
        --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" \
        --no-emit-package torch --overrides "$overrides" --output-file "requirements/$out" "$@"
}
compile serve-cpu.txt --extra client --extra cpu --extra models --extra otel --extra signing
compile serve-gpu.txt --extra client --extra gpu --extra models --extra otel --extra signing
compile train.txt --extra client --extra cpu --extra train requirements/torch-needs.in
compile load.txt --extra client requirements/load.in
compile dev.txt --extra cpu --extra train --extra dev requirements/torch-needs.in
for tools in audit build; do
    uv pip compile "requirements/$tools.in" --universal --python-version 3.11 --generate-hashes --quiet \
        --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" \
        --output-file "requirements/$tools.txt"
done
