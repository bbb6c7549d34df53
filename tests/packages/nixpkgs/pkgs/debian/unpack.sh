# Unpacks $debs into $out and makes the result independent of where Debian has
# its files: bin, lib, include and share at the top, links inside, the store's
# loader, run paths of store paths, and the store's interpreters in scripts.

# shellcheck shell=dash disable=SC2154 # the variables are the derivation's
set -eu
export HOME="$PWD"
patchelf=$patchelf/bin/patchelf

mkdir -p root "$out"
for deb in $debs; do
  dpkg-deb -x "$deb" root
done

# merge FROM TO: moves a tree into another, file by file where both exist.
merge() {
  local entry
  [ -d "$1" ] || return 0
  mkdir -p "$2"
  for entry in "$1"/* "$1"/.[!.]*; do
    if [ ! -e "$entry" ] && [ ! -L "$entry" ]; then
      continue
    elif [ -d "$entry" ] && [ ! -L "$entry" ] && [ -d "$2/${entry##*/}" ]; then
      merge "$entry" "$2/${entry##*/}"
    else
      mv "$entry" "$2/"
    fi
  done
  rm -rf "$1"
}

rm -rf root/usr/share/doc root/usr/share/man root/usr/share/info root/usr/share/lintian root/usr/share/bug \
  root/usr/share/locale root/usr/share/doc-base root/usr/share/menu root/usr/share/applications \
  root/usr/share/pixmaps root/usr/share/bash-completion root/usr/share/gcc root/usr/share/apport root/usr/share/gdb
merge "root/usr/lib/$triple" root/usr/lib.flat
merge "root/lib/$triple" root/usr/lib.flat
merge root/usr/lib root/usr/lib.flat
merge root/lib root/usr/lib.flat
merge "root/usr/include/$triple" root/usr/include
for dir in bin sbin; do
  merge "root/$dir" "$out/bin"
  merge "root/usr/$dir" "$out/bin"
done
merge root/usr/lib.flat "$out/lib"
merge root/usr/include "$out/include"
merge root/usr/libexec "$out/libexec"
merge root/usr/share "$out/share"

cd "$out"
chmod -R u+w .

# Where a path of Debian is in $out; nothing if it is not.
here() {
  local path=${1#/usr}
  path=${path#/}
  case $path in
    lib/$triple/*) path=lib/${path#lib/"$triple"/} ;;
    sbin/*) path=bin/${path#sbin/} ;;
    include/$triple/*) path=include/${path#include/"$triple"/} ;;
  esac
  if [ -e "$path" ]; then
    echo "$out/$path"
  else
    for dep in $deps; do
      if [ -e "$dep/$path" ]; then
        echo "$dep/$path"
        return
      fi
    done
  fi
}

find . -type l | while read -r link; do
  target=$(readlink "$link")
  case $target in
    /nix/*) ;;
    /*)
      new=$(here "$target")
      if [ -n "$new" ]; then ln -sfn "$new" "$link"; else rm "$link"; fi
      ;;
    *)
      # A relative link that left its directory before the files moved.
      if [ ! -e "$link" ]; then
        new=
        for candidate in "lib/${target##*/}" "bin/${target##*/}"; do
          if [ -e "$candidate" ] && [ "./$candidate" != "$link" ]; then new=$out/$candidate; break; fi
        done
        for dep in $deps; do
          [ -z "$new" ] || break
          if [ -e "$dep/lib/${target##*/}" ]; then new=$dep/lib/${target##*/}; fi
        done
        if [ -n "$new" ]; then ln -sfn "$new" "$link"; fi
      fi
      ;;
  esac
done

# Directories of $out that hold shared libraries, then those of the others.
libdirs=$(find . -name '*.so*' ! -type d | sed 's|/[^/]*$||; s|^\.|'"$out"'|' | sort -u)
for dep in $deps; do
  if [ -d "$dep/lib" ]; then libdirs="$libdirs $dep/lib"; fi
done

# locate LIBRARY: the directory that has it.
locate() {
  local dir
  for dir in $libdirs; do
    if [ -e "$dir/$1" ]; then
      echo "$dir"
      return
    fi
  done
  echo "unpack.sh: $file needs $1, which no dependency has" >&2
  exit 1
}

find . -type f \( -perm +111 -o -name '*.so*' -o -name '*.node' \) > "$HOME/files"
while read -r file; do
  magic=
  IFS= read -r -n 4 magic < "$file" || true
  case $magic in
    ?ELF)
      case $file in *.o | *.a | */"$loader") continue ;; esac
      # A static program or an object file has nothing to patch.
      if ! needed=$("$patchelf" --print-needed "$file" 2> "$HOME/error"); then
        grep -q -e dynamic -e 'wrong ELF type' "$HOME/error" && continue
        cat "$HOME/error" >&2
        exit 1
      fi
      [ -n "$needed" ] || continue
      rpath=
      for library in $needed; do
        [ "$library" != "$loader" ] || continue
        dir=$(locate "$library")
        case :$rpath: in *":$dir:"*) ;; *) rpath=$rpath${rpath:+:}$dir ;; esac
      done
      if "$patchelf" --print-interpreter "$file" > /dev/null 2>&1; then
        "$patchelf" --set-interpreter "$glibc/lib/$loader" --set-rpath "$rpath" "$file"
      else
        "$patchelf" --set-rpath "$rpath" "$file"
      fi
      ;;
    '#!'*)
      if [ -n "${shell:-}" ]; then
        sed -i -e "1s|^#! */bin/sh|#!$shell/bin/sh|" -e "1s|^#! */bin/bash|#!$shell/bin/bash|" "$file"
      fi
      ;;
  esac
done < "$HOME/files"

eval "$extra"
rmdir bin lib 2> /dev/null || true
