#!/bin/sh
# Writes requirements.lock, requirements-cluster.lock and requirements-dev.lock from pyproject.toml, with the hash of
# every file.
#
# Run it after a change of the dependencies, and with --upgrade to take newer versions; it needs uv and a package
# index.  --universal keeps one lock for every Python from 3.11 on; no headers and annotations, so that the locks
# differ only where versions do.  Each lock is bound to those before it, because they go into one .venv.
set -eu
cd "$(dirname "$0")/.."
options='--generate-hashes --universal --python-version 3.11 --no-header --no-annotate'
# shellcheck disable=SC2086  # the options are words
uv pip compile --quiet pyproject.toml $options "$@" -o requirements.lock
# shellcheck disable=SC2086
uv pip compile --quiet pyproject.toml --extra cluster $options "$@" \
    -c requirements.lock -o requirements-cluster.lock
# shellcheck disable=SC2086
uv pip compile --quiet pyproject.toml --all-extras --group test --group check $options "$@" \
    -c requirements.lock -c requirements-cluster.lock -o requirements-dev.lock
