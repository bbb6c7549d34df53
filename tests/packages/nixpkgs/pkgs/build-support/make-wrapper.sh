# makeWrapper PROGRAM WRAPPER [--set V X | --set-default V X | --unset V |
# --prefix V SEP X | --suffix V SEP X | --add-flags X | --run X | --argv0 X]...
# writes a script that changes its environment and becomes the program;
# wrapProgram PROGRAM ... puts one in the program's place.
makeWrapper() {
  local original=$1 wrapper=$2 flags="" argv0='"$0"'
  shift 2
  mkdir -p "$(dirname "$wrapper")"
  {
    printf '#!%s -e\n' "$SHELL"
    while (($#)); do
      case $1 in
        --set) printf 'export %s=%q\n' "$2" "$3"; shift 3 ;;
        --set-default) printf 'export %s=${%s-%q}\n' "$2" "$2" "$3"; shift 3 ;;
        --unset) printf 'unset %s\n' "$2"; shift 2 ;;
        --prefix) printf 'export %s=%q${%s:+%q$%s}\n' "$2" "$4" "$2" "$3" "$2"; shift 4 ;;
        --suffix) printf 'export %s=${%s:+$%s%q}%q\n' "$2" "$2" "$2" "$3" "$4"; shift 4 ;;
        --add-flags) flags+=" $2"; shift 2 ;;
        --run) printf '%s\n' "$2"; shift 2 ;;
        --chdir) printf 'cd %q\n' "$2"; shift 2 ;;
        --argv0) printf -v argv0 '%q' "$2"; shift 2 ;;
        --inherit-argv0) shift ;;
        *) echo "makeWrapper: what is $1?" >&2; return 1 ;;
      esac
    done
    printf 'exec -a %s %q %s "$@"\n' "$argv0" "$original" "$flags"
  } > "$wrapper.new"
  chmod +x "$wrapper.new"
  mv "$wrapper.new" "$wrapper"
}

wrapProgram() {
  local program=$1 hidden
  hidden=$(dirname "$program")/.$(basename "$program")-wrapped
  mv "$program" "$hidden"
  makeWrapper "$hidden" "$program" "${@:2}"
}
