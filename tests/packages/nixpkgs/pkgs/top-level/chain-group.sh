# The paths of a group. Each output refers to the next, so the closure of the
# first, `out`, is the whole group. The fourth to the sixth output of a group
# are a file, a program and a link.

# shellcheck shell=dash disable=SC2154,SC2086
i=0
for output in $outputs; do
  eval "path_$i=\$$output"
  i=$((i + 1))
done
count=$i

i=0
while [ $i -lt $count ]; do
  eval "path=\$path_$i"
  below=
  if [ $((i + 1)) -lt "$count" ]; then eval "below=\$path_$((i + 1))"; fi
  text="$tag $((first + i))
$below
"
  if [ $i = 3 ]; then
    printf '%s' "$text" > "$path"
  elif [ $i = 4 ]; then
    printf '#!/bin/sh\n: "%s"\necho %s\n' "$text" "$((first + i))" > "$path"
    chmod +x "$path"
  elif [ $i = 5 ] && [ -n "$below" ]; then
    ln -s "$below" "$path"
  else
    mkdir -p "$path/share/chain"
    printf '%s' "$text" > "$path/share/chain/$tag-$((first + i))"
  fi
  i=$((i + 1))
done
