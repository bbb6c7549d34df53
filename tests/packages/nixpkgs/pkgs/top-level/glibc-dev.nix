# What compiling against the C library needs: headers, start files, and linker
# scripts that name the store's libraries.
{ lib, pkgs, debian }:

debian.fromDebs {
  pname = "glibc-dev";
  debs = [ "libc6-dev" "linux-libc-dev" "libcrypt-dev" ];
  deps = [ debian.glibc ];
  extra = ''
    for script in lib/libc.so lib/libm.so lib/libm.a lib/libpthread.so; do
      [ -f "$script" ] || continue
      head -c 200 "$script" | grep -q '^/\* GNU ld script' || continue
      sed -i -e "s|/usr/lib/$triple/\(lib[a-z_]*\.a\)|$out/lib/\1|g" -e "s|/usr/lib/$triple/\(lib[a-z_0-9.-]*\.a\)|$out/lib/\1|g" \
        -e "s|/usr/lib/$triple/|$glibc/lib/|g" -e "s|/lib/$triple/|$glibc/lib/|g" -e "s|/lib64/|$glibc/lib/|g" "$script"
    done
    rm -rf bin share lib/audit
  '';
}
