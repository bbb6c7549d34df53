# One file of all certificates.
# shellcheck shell=dash disable=SC2154
mkdir -p root "$out/etc/ssl/certs" "$out/nix-support"
dpkg-deb -x "$debs" root
cat root/usr/share/ca-certificates/mozilla/*.crt > "$out/etc/ssl/certs/ca-bundle.crt"
sed "s|@out@|$out|g" "$setupHook" > "$out/nix-support/setup-hook"
