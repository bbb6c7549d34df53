# The C library, with the two libraries that depend on it in a circle, as one
# store path: lib/ only.

# shellcheck shell=dash disable=SC2154
set -eu
mkdir -p root "$out/lib"
for deb in $debs; do
  dpkg-deb -x "$deb" root
done
for dir in root/lib root/usr/lib; do
  if [ -d "$dir/$triple" ]; then cp -a "$dir/$triple/." "$out/lib/"; fi
done
chmod -R u+w "$out"

# Some releases have the loader itself in lib64 or lib.
if [ ! -f "$out/lib/$loader" ]; then
  find root -name "$loader" -type f -exec cp {} "$out/lib/" \;
fi

hex() {
  printf %s "$1" | xxd -p | tr -d '\n'
}

# replace FILE OLD NEW: changes a string of a binary to one of the same length.
replace() {
  xxd -p "$1" | tr -d '\n' | sed "s/$(hex "$2")/$(hex "$3")/g" | xxd -r -p > new
  [ "$(stat -c %s new)" = "$(stat -c %s "$1")" ]
  ! cmp -s new "$1" || echo "glibc.sh: no $2 in $1" >&2
  cat new > "$1"
}

# The loader takes nothing from the system that it runs in: no cache, no
# preloaded list, no directories that are always searched; nor does the C
# library take its character set modules from there.
real=$(readlink -f "$out/lib/$loader")
replace "$real" /etc/ld.so.cache /nix/ld.so.cache
replace "$real" /etc/ld.so.preload /nix/ld.so.preload
replace "$real" /lib/ /nix/ # also in /usr/lib/
libc=$(readlink -f "$out/lib/libc.so.6")
replace "$libc" "/usr/lib/$triple/gconv" "/nix/lib/$triple/gconv"
# It loads libgcc_s itself, for the end of a thread and for backtraces.
if [ -n "$patchelf" ]; then
  "$patchelf/bin/patchelf" --set-rpath "$out/lib" "$libc"
fi
chmod 0555 "$real" "$libc"
find "$out" -type l ! -exec test -e {} \; -exec rm {} \;
