# Added to unpack.sh for Python, in $out.

# shellcheck shell=dash disable=SC2154,SC2164
rm -rf share lib/debug etc
lib=lib/python$pythonVersion
rm -rf "$lib"/config-* lib/python3
ln -sf "python$pythonVersion" bin/python3
ln -sf python3 bin/python
ln -sf "pydoc$pythonVersion" bin/pydoc3
rm -f bin/pdb* bin/pygettext* bin/2to3*
mkdir -p "$lib/site-packages" nix-support
sed -i "1s|^#! *.*python.*|#!$out/bin/python$pythonVersion|" bin/pydoc* 2> /dev/null || true
find . -type l ! -exec test -e {} \; -exec rm {} \;

# Debian's site looks into the system's directories, where the image that this
# Python runs in may have modules of its own. Only the prefix counts.
sed -i -e 's|"dist-packages"|"site-packages"|g' -e 's|/usr/local/lib|/nix/nowhere/lib|g' \
  -e "s|'/usr/local/lib|'/nix/nowhere/lib|g" "$lib/site.py"
# The scheme names Debian's own layout otherwise.
sed -i -e 's|deb_system|posix_prefix|g; s|posix_local|posix_prefix|g' "$lib/sysconfig.py"

sed -e "s|@sitePackages@|lib/python$pythonVersion/site-packages|" -e "s|@out@|$out|g" "$setupHook" > nix-support/setup-hook
find . -name __pycache__ -prune -exec rm -rf {} +
# Hashes nothing and needs no date: what is in a store path does not change.
bin/python3 -E -s -m compileall -q -j 0 --invalidation-mode unchecked-hash "$lib" > /dev/null || true
