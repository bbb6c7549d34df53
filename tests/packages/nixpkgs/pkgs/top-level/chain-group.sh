# The paths of a group. Output i refers to the outputs 2 i + 1 and 2 i + 2, so
# the closure of the first, `out`, is the whole group. The fourth, the
# fifth and the last output of a group are a file, a program and a link.

# shellcheck shell=busybox disable=SC2154,SC2086
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
  for child in $((2 * i + 1)) $((2 * i + 2)); do
    if [ $child -lt $count ]; then eval "below=\"\$below\$path_$child
\""; fi
  done
  text="$tag $((first + i))
$below"
  if [ $i = 3 ]; then
    printf '%s' "$text" > "$path"
  elif [ $i = 4 ]; then
    printf '#!/bin/sh\n: "%s"\necho %s\n' "$text" "$((first + i))" > "$path"
    chmod +x "$path"
  elif [ $i -gt 4 ] && [ $i = $((count - 1)) ]; then
    eval "ln -s \$path_4 $path"
  else
    mkdir -p "$path/share/chain"
    printf '%s' "$text" > "$path/share/chain/$tag-$((first + i))"
  fi
  i=$((i + 1))
done
