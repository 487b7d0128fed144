#!/usr/bin/env bash
# Shows what a script finds in its sandbox: itself, and nothing of the host.
echo "Hello from bash $BASH_VERSION, as user $(id -u), process $$."
echo "Files here: $(ls -A | tr '\n' ' ')"
echo "This line went to standard error." >&2
