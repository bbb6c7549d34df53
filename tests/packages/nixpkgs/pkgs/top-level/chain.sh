# The top of a chain: bin/chain-N, and the list of what is directly below.

# shellcheck shell=dash disable=SC2154
mkdir -p "$out/bin" "$out/share/chain"
printf '#!/bin/sh\necho %s\n' "$count" > "$out/bin/chain-$count"
chmod +x "$out/bin/chain-$count"
for group in $groups; do echo "$group"; done > "$out/share/chain/top-$count"
