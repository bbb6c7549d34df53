#!@bash@
# gcc with the store's C library; the sysroot, which does not exist, keeps it
# from looking for headers and libraries in the system that it runs in.
flags=(--sysroot=@dev@/none -B@dev@/lib -B@binutils@/bin/ -idirafter @dev@/include)
compile_only=
for word in "$@"; do
  case $word in
    -c | -S | -E | -M | -MM | -fsyntax-only) compile_only=1 ;;
  esac
done
if [[ -z $compile_only && $# -gt 0 && $* != -v && $* != --version ]]; then
  flags+=(-L@dev@/lib -L@glibc@/lib -Wl,-dynamic-linker=@glibc@/lib/@loader@ -Wl,-rpath,@glibc@/lib)
  # shellcheck disable=SC2206 # words of a list
  linker=($NIX_LDFLAGS)
  link_flags=()
  paths=()
  for ((i = 0; i < ${#linker[@]}; i++)); do
    case ${linker[i]} in
      -L*)
        link_flags+=("${linker[i]}")
        paths+=("${linker[i]#-L}")
        ;;
      -rpath)
        link_flags+=("-Wl,-rpath,${linker[i + 1]}")
        i=$((i + 1))
        ;;
      *) link_flags+=("-Wl,${linker[i]}") ;;
    esac
  done
  # Directories that have a library which is asked for go into the run path.
  for word in "$@"; do
    case $word in
      -l*)
        for path in "${paths[@]}"; do
          if compgen -G "$path/lib${word#-l}.so.*" > /dev/null || [[ -f $path/lib${word#-l}.so && ! -L $path/lib${word#-l}.so ]]; then
            link_flags+=("-Wl,-rpath,$path")
          fi
        done
        ;;
      -L/nix/store/*) paths+=("${word#-L}") ;;
    esac
  done
  flags+=("${link_flags[@]}")
fi
export COMPILER_PATH=@binutils@/bin${COMPILER_PATH:+:$COMPILER_PATH}
# shellcheck disable=SC2086
exec "@gcc@/bin/gcc" $NIX_CFLAGS_COMPILE "$@" "${flags[@]}"
