# The patchelf that patches everything else, unpatched itself.

# shellcheck shell=dash disable=SC2154
set -eu
mkdir -p root "$out/bin" "$out/lib"
for deb in $debs; do
  dpkg-deb -x "$deb" root
done
cp -a root/usr/lib/"$triple"/libstdc++.so* "$out/lib/"
cp root/usr/bin/patchelf "$out/lib/patchelf"
cat > "$out/bin/patchelf" << SCRIPT
#!$PATH/sh
exec $glibc/lib/$loader --library-path $glibc/lib:$out/lib $out/lib/patchelf "\$@"
SCRIPT
chmod +x "$out/bin/patchelf"
