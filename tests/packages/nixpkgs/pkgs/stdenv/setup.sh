# The standard environment: what `$stdenv/setup` is. Sourced by every builder
# and by nix-shell and `nix print-dev-env`; the lines that stdenv/default.nix
# puts before it name the shell and the programs that are always there.
#
# Same contract as in nixpkgs: dependencies come from $nativeBuildInputs and
# $buildInputs (and the propagated and the deps* lists), their setup hooks are
# sourced once each, environment hooks then run once per dependency, PATH and
# XDG_DATA_DIRS come from them, and genericBuild runs the phases. Build, host
# and target are one platform here.

# shellcheck shell=bash disable=SC2154
set -eu
set -o pipefail

# Hooks: code in a variable or function, and in an array `...Hooks`.

_eval() {
  if declare -F "$1" > /dev/null; then
    "$@"
  else
    eval "$1"
  fi
}

# runHook NAME: the function or variable of that name, then its array of hooks.
runHook() {
  local hookName=$1 hook list="${1%Hook}Hooks[@]"
  shift
  for hook in "_callImplicitHook 0 $hookName" ${!list+"${!list}"}; do
    _eval "$hook" "$@"
  done
  return 0
}

# runOneHook NAME: stops at the first that succeeds.
runOneHook() {
  local hookName=$1 hook list="${1%Hook}Hooks[@]"
  shift
  for hook in "_callImplicitHook 1 $hookName" ${!list+"${!list}"}; do
    if _eval "$hook" "$@"; then return 0; fi
  done
  return 1
}

_callImplicitHook() {
  local default=$1 hookName=$2
  if declare -F "$hookName" > /dev/null; then
    "$hookName"
  elif [[ -n ${!hookName:-} ]]; then
    eval "${!hookName}"
  else
    return "$default"
  fi
}

exitHandler() {
  local status=$?
  set +e
  if ((status == 0)); then
    runHook exitHook
  else
    runHook failureHook
  fi
  return "$status"
}

# Lists in variables of the shape A:B:C.

addToSearchPathWithCustomDelimiter() {
  local delimiter=$1 varName=$2 dir=$3
  if [[ -d $dir && :${!varName:-}: != *":$dir:"* ]]; then
    export "${varName}=${!varName:+${!varName}${delimiter}}${dir}"
  fi
}

addToSearchPath() {
  addToSearchPathWithCustomDelimiter ":" "$@"
}

prependToVar() {
  local -n _var=$1
  shift
  if [[ "$(declare -p "${!_var}" 2> /dev/null)" == "declare -a"* ]]; then
    _var=("$@" "${_var[@]}")
  else
    _var="$* ${_var:-}"
  fi
}

appendToVar() {
  local -n _var=$1
  shift
  if [[ "$(declare -p "${!_var}" 2> /dev/null)" == "declare -a"* ]]; then
    _var+=("$@")
  else
    _var="${_var:-} $*"
  fi
}

_addRpathPrefix() {
  if [[ ${NIX_NO_SELF_RPATH:-0} != 1 ]]; then
    export NIX_LDFLAGS="-rpath $1/lib ${NIX_LDFLAGS:-}"
  fi
}

# Environment hooks: functions that are called with each dependency.

declare -a envBuildBuildHooks=() envBuildHostHooks=() envBuildTargetHooks=()
declare -a envHostHostHooks=() envHostTargetHooks=() envTargetTargetHooks=()
declare -a pkgsBuildBuild=() pkgsBuildHost=() pkgsBuildTarget=()
declare -a pkgsHostHost=() pkgsHostTarget=() pkgsTargetTarget=()

# addEnvHooks OFFSET HOOK...: for dependencies of that host offset.
addEnvHooks() {
  local offset=$1
  shift
  case $offset in
    -1)
      envBuildHostHooks+=("$@")
      envBuildTargetHooks+=("$@")
      ;;
    0)
      envHostHostHooks+=("$@")
      envHostTargetHooks+=("$@")
      # Without strictDeps every dependency counts for every hook.
      [[ -n ${strictDeps:-} ]] || envBuildHostHooks+=("$@")
      ;;
    *) envTargetTargetHooks+=("$@") ;;
  esac
}

# findInputs PACKAGE ARRAY HOST TARGET: the package and what it propagates.
findInputs() {
  local pkg=$1 array=$2 host=$3 target=$4 file next
  local -n list=$array
  for next in ${list[@]+"${list[@]}"}; do
    [[ $next != "$pkg" ]] || return 0
  done
  unset -n list
  if [[ ! -e $pkg ]]; then
    echo "build input $pkg does not exist" >&2
    exit 1
  fi
  eval "$array+=(\"\$pkg\")"
  file=$pkg/nix-support/propagated-native-build-inputs
  if [[ -f $file ]]; then
    for next in $(< "$file"); do findInputs "$next" pkgsBuildHost -1 0; done
  fi
  file=$pkg/nix-support/propagated-build-inputs
  if [[ -f $file ]]; then
    for next in $(< "$file"); do findInputs "$next" "$array" "$host" "$target"; done
  fi
}

# activatePackage PACKAGE HOST TARGET: its setup hook, programs and data.
activatePackage() {
  local pkg=$1
  # shellcheck disable=SC2034 # for the setup hook
  local hostOffset=$2 targetOffset=$3
  if [[ -f $pkg ]]; then
    # shellcheck disable=SC1090
    { set +u; source "$pkg"; set -u; }
  fi
  if ((hostOffset <= -1)) || [[ -z ${strictDeps:-} ]]; then
    addToSearchPath _PATH "$pkg/bin"
  fi
  if ((hostOffset <= -1)); then
    addToSearchPath _XDG_DATA_DIRS "$pkg/share"
  fi
  if ((hostOffset == 0)); then
    addToSearchPath _HOST_PATH "$pkg/bin"
  fi
  if [[ -f $pkg/nix-support/setup-hook ]]; then
    # A hook may be less strict than this file.
    # shellcheck disable=SC1091
    { set +u; source "$pkg/nix-support/setup-hook"; set -u; }
  fi
}

_allFlags() {
  export system pname name version
  for varName in $(compgen -A variable | grep '^[a-z][A-Za-z0-9_]*$'); do
    [[ -z ${!varName:-} ]] || args+=(--subst-var "$varName")
  done
}

# substitute INPUT OUTPUT (--replace A B | --subst-var V | --subst-var-by V B |
# --subst-var-all)...
substitute() {
  local input=$1 output=$2
  if [[ ! -f $input ]]; then
    echo "substitute: $input does not exist" >&2
    return 1
  fi
  substituteStream "$(cat "$input"; printf x)" "${@:3}" > "$output.substituted"
  if [[ -x $input ]]; then chmod +x "$output.substituted"; fi
  mv -f "$output.substituted" "$output"
}

substituteStream() {
  local text=${1%x} pattern replacement
  shift
  while (($#)); do
    case $1 in
      --replace | --replace-fail | --replace-warn | --replace-quiet)
        pattern=$2 replacement=$3
        if [[ $1 == --replace-fail && $text != *"$pattern"* ]]; then
          echo "substitute: nothing matches $pattern" >&2
          return 1
        fi
        shift 3
        ;;
      --subst-var)
        pattern=@$2@ replacement=${!2}
        shift 2
        ;;
      --subst-var-by)
        pattern=@$2@ replacement=$3
        shift 3
        ;;
      *)
        echo "substitute: what is $1?" >&2
        return 1
        ;;
    esac
    text=${text//"$pattern"/"$replacement"}
  done
  printf '%s' "$text"
}

substituteInPlace() {
  local -a files=()
  local file
  while (($#)) && [[ $1 != --* ]]; do
    files+=("$1")
    shift
  done
  for file in "${files[@]}"; do substitute "$file" "$file" "$@"; done
}

substituteAll() {
  local -a args=()
  _allFlags
  substitute "$1" "$2" "${args[@]}"
}

substituteAllInPlace() {
  substituteAll "$1" "$1"
}

# Set-up.

: "${outputs:=out}"
: "${NIX_BUILD_CORES:=1}"
if ((NIX_BUILD_CORES <= 0)); then
  NIX_BUILD_CORES=$(nproc 2> /dev/null || echo 1)
fi
export NIX_BUILD_CORES

# Nothing of the caller's PATH but the shell that is running.
PATH=
_PATH=
_HOST_PATH=
_XDG_DATA_DIRS=
HOST_PATH=
declare -a preConfigureHooks preFixupHooks fixupOutputHooks preHooks postHooks exitHooks failureHooks

export CONFIG_SHELL=$SHELL
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-315532800}
export TZ=UTC
export NIX_ENFORCE_NO_NATIVE=${NIX_ENFORCE_NO_NATIVE-1}
if [[ -z ${NIX_STORE:-} ]]; then NIX_STORE=${SHELL%/*/bin/*}; fi
export NIX_STORE

for _dir in $initialPath; do addToSearchPath PATH "$_dir/bin"; done
unset _dir
export PATH

# A build finds no certificates by accident; a development shell may.
if [[ ${IN_NIX_SHELL:-} != impure ]]; then
  export NIX_SSL_CERT_FILE=${NIX_SSL_CERT_FILE:-/no-cert-file.crt}
  export SSL_CERT_FILE=${SSL_CERT_FILE:-/no-cert-file.crt}
fi

runHook preHook

for _pkg in ${depsBuildBuild:-} ${depsBuildBuildPropagated:-}; do findInputs "$_pkg" pkgsBuildBuild -1 -1; done
for _pkg in ${defaultNativeBuildInputs:-} ${nativeBuildInputs:-} ${propagatedNativeBuildInputs:-}; do
  findInputs "$_pkg" pkgsBuildHost -1 0
done
for _pkg in ${depsBuildTarget:-} ${depsBuildTargetPropagated:-}; do findInputs "$_pkg" pkgsBuildTarget -1 1; done
for _pkg in ${depsHostHost:-} ${depsHostHostPropagated:-}; do findInputs "$_pkg" pkgsHostHost 0 0; done
for _pkg in ${defaultBuildInputs:-} ${buildInputs:-} ${propagatedBuildInputs:-}; do
  findInputs "$_pkg" pkgsHostTarget 0 1
done
for _pkg in ${depsTargetTarget:-} ${depsTargetTargetPropagated:-}; do findInputs "$_pkg" pkgsTargetTarget 1 1; done

for _pkg in ${pkgsBuildBuild[@]+"${pkgsBuildBuild[@]}"}; do activatePackage "$_pkg" -1 -1; done
for _pkg in ${pkgsBuildHost[@]+"${pkgsBuildHost[@]}"}; do activatePackage "$_pkg" -1 0; done
for _pkg in ${pkgsBuildTarget[@]+"${pkgsBuildTarget[@]}"}; do activatePackage "$_pkg" -1 1; done
for _pkg in ${pkgsHostHost[@]+"${pkgsHostHost[@]}"}; do activatePackage "$_pkg" 0 0; done
for _pkg in ${pkgsHostTarget[@]+"${pkgsHostTarget[@]}"}; do activatePackage "$_pkg" 0 1; done
for _pkg in ${pkgsTargetTarget[@]+"${pkgsTargetTarget[@]}"}; do activatePackage "$_pkg" 1 1; done

# runEnvHooks PACKAGE HOOK...
runEnvHooks() {
  local pkg=$1 hook
  shift
  for hook in "$@"; do "$hook" "$pkg"; done
}

for _pkg in ${pkgsBuildHost[@]+"${pkgsBuildHost[@]}"}; do
  runEnvHooks "$_pkg" ${envBuildHostHooks[@]+"${envBuildHostHooks[@]}"}
done
for _pkg in ${pkgsHostHost[@]+"${pkgsHostHost[@]}"} ${pkgsHostTarget[@]+"${pkgsHostTarget[@]}"}; do
  runEnvHooks "$_pkg" ${envHostTargetHooks[@]+"${envHostTargetHooks[@]}"}
done
for _pkg in ${pkgsTargetTarget[@]+"${pkgsTargetTarget[@]}"}; do
  runEnvHooks "$_pkg" ${envTargetTargetHooks[@]+"${envTargetTargetHooks[@]}"}
done
unset _pkg

_addRpathPrefix "${out:-}"

PATH="${_PATH-}${_PATH:+${PATH:+:}}$PATH"
HOST_PATH="${_HOST_PATH-}${_HOST_PATH:+${HOST_PATH:+:}}$HOST_PATH"
XDG_DATA_DIRS="${XDG_DATA_DIRS-}${XDG_DATA_DIRS:+${_XDG_DATA_DIRS:+:}}${_XDG_DATA_DIRS-}"
export PATH HOST_PATH XDG_DATA_DIRS
unset _PATH _HOST_PATH _XDG_DATA_DIRS

# Phases.

unpackFile() {
  local file=$1
  if [[ -d $file ]]; then
    cp -r --no-preserve=mode -- "$file" "$(basename "${file#"$NIX_STORE"/*-}")"
    return
  fi
  case $file in
    *.tar | *.tar.* | *.tgz | *.txz | *.tbz2) tar -xf "$file" ;;
    *)
      echo "do not know how to unpack $file" >&2
      exit 1
      ;;
  esac
}

unpackPhase() {
  runHook preUnpack
  local before after file
  if [[ -z ${srcs:-} ]]; then
    if [[ -z ${src:-} ]]; then
      echo "variable \$src or \$srcs should point to the source" >&2
      exit 1
    fi
    srcs=$src
  fi
  before=$(printf '%s\n' */)
  for file in $srcs; do
    echo "unpacking source archive $file"
    unpackFile "$file"
  done
  if [[ -n ${setSourceRoot:-} ]]; then
    runOneHook setSourceRoot
  elif [[ -z ${sourceRoot:-} ]]; then
    for after in */; do
      [[ $'\n'$before$'\n' == *$'\n'"$after"$'\n'* ]] || sourceRoot=${after%/}
    done
  fi
  : "${sourceRoot:?unpacking made no directory}"
  chmod -R u+w -- "$sourceRoot"
  runHook postUnpack
}

patchPhase() {
  runHook prePatch
  local file
  for file in ${patches:-}; do
    echo "applying patch $file"
    # shellcheck disable=SC2086
    patch ${patchFlags:--p1} < "$file"
  done
  runHook postPatch
}

configurePhase() {
  runHook preConfigure
  : "${configureScript=}"
  if [[ -z $configureScript && -x ./configure ]]; then configureScript=./configure; fi
  if [[ -n $configureScript ]]; then
    # shellcheck disable=SC2086
    $configureScript ${dontAddPrefix:+} "${prefixKey:---prefix=}$prefix" ${configureFlags:-}
  else
    echo "no configure script, doing nothing"
  fi
  runHook postConfigure
}

_hasMakefile() {
  [[ -n ${makefile:-} || -e Makefile || -e makefile || -e GNUmakefile ]]
}

buildPhase() {
  runHook preBuild
  if [[ -z ${makeFlags:-} ]] && ! _hasMakefile; then
    echo "no Makefile, doing nothing"
  else
    # shellcheck disable=SC2086
    make ${makefile:+-f $makefile} SHELL="$SHELL" ${enableParallelBuilding:+-j$NIX_BUILD_CORES} ${makeFlags:-} ${buildFlags:-}
  fi
  runHook postBuild
}

checkPhase() {
  runHook preCheck
  # shellcheck disable=SC2086
  make ${makefile:+-f $makefile} SHELL="$SHELL" ${makeFlags:-} ${checkTarget:-check}
  runHook postCheck
}

installPhase() {
  runHook preInstall
  if [[ -z ${makeFlags:-} ]] && ! _hasMakefile; then
    echo "no Makefile, doing nothing"
  else
    mkdir -p "$prefix"
    # shellcheck disable=SC2086
    make ${makefile:+-f $makefile} SHELL="$SHELL" ${makeFlags:-} ${installFlags:-} ${installTargets:-install}
  fi
  runHook postInstall
}

# patchShebangs FILE-OR-DIRECTORY...: interpreters from PATH.
patchShebangs() {
  while [[ ${1:-} == --* ]]; do shift; done
  local file line rest words program path
  [[ $# -gt 0 ]] || return 0
  while IFS= read -r -d '' file; do
    IFS= read -r line < "$file" 2> /dev/null || continue
    [[ $line == '#!'* && $line != '#!'*"$NIX_STORE"* ]] || continue
    read -r -a words <<< "${line#??}"
    rest=("${words[@]:1}")
    program=${words[0]##*/}
    if [[ $program == env ]]; then
      program=${words[1]}
      rest=("${words[@]:2}")
    fi
    path=$(type -P "$program") || continue
    echo "$file: interpreter is now $path"
    printf '%s\n' "#!$path${rest[*]:+ ${rest[*]}}" > "$file.shebang"
    tail -n +2 "$file" >> "$file.shebang"
    cat "$file.shebang" > "$file"
    rm "$file.shebang"
  done < <(find "$@" -type f -perm -0100 -print0)
}

# getAllOutputNames, for fixup.
getAllOutputNames() {
  echo "$outputs"
}

fixupPhase() {
  runHook preFixup
  local output prefix
  for output in $outputs; do
    if [[ -e ${!output} && -d ${!output} ]]; then
      prefix=${!output}
      chmod -R u+w "$prefix"
      if [[ -z ${dontPatchShebangs:-} ]]; then patchShebangs "$prefix"; fi
      runHook fixupOutput
    fi
  done
  local to=${outputDev:-}
  if [[ -z $to ]]; then
    to=out
    for output in $outputs; do [[ $output != dev ]] || to=dev; done
    [[ -n ${!to:-} ]] || to=${outputs%% *}
  fi
  to=${!to}
  local var file
  for var in propagatedBuildInputs:propagated-build-inputs propagatedNativeBuildInputs:propagated-native-build-inputs; do
    file=${var#*:} var=${var%:*}
    if [[ -n ${!var:-} ]]; then
      mkdir -p "$to/nix-support"
      printf '%s ' "${!var}" > "$to/nix-support/$file"
    fi
  done
  if [[ -n ${setupHook:-} ]]; then
    mkdir -p "$to/nix-support"
    substituteAll "$setupHook" "$to/nix-support/setup-hook"
  fi
  if [[ -n ${setupHooks:-} ]]; then
    mkdir -p "$to/nix-support"
    for file in $setupHooks; do
      substituteAll "$file" "$to/nix-support/hook"
      cat "$to/nix-support/hook" >> "$to/nix-support/setup-hook"
      rm "$to/nix-support/hook"
    done
  fi
  runHook postFixup
}

installCheckPhase() {
  runHook preInstallCheck
  # shellcheck disable=SC2086
  make ${makefile:+-f $makefile} SHELL="$SHELL" ${makeFlags:-} ${installCheckTarget:-installcheck}
  runHook postInstallCheck
}

distPhase() {
  runHook preDist
  make dist
  runHook postDist
}

showPhaseHeader() {
  echo "running phase: $1"
}

runPhase() {
  local curPhase=$1
  case $curPhase in
    unpackPhase) [[ -z ${dontUnpack:-} ]] || return 0 ;;
    patchPhase) [[ -z ${dontPatch:-} ]] || return 0 ;;
    configurePhase) [[ -z ${dontConfigure:-} ]] || return 0 ;;
    buildPhase) [[ -z ${dontBuild:-} ]] || return 0 ;;
    checkPhase) [[ -n ${doCheck:-} ]] || return 0 ;;
    installPhase) [[ -z ${dontInstall:-} ]] || return 0 ;;
    fixupPhase) [[ -z ${dontFixup:-} ]] || return 0 ;;
    installCheckPhase) [[ -n ${doInstallCheck:-} ]] || return 0 ;;
    distPhase) [[ -n ${doDist:-} ]] || return 0 ;;
  esac
  showPhaseHeader "$curPhase"
  # A variable of that name is the phase's text, otherwise its function.
  if [[ -n ${!curPhase:-} ]]; then
    eval "${!curPhase}"
  else
    "$curPhase"
  fi
  if [[ $curPhase == unpackPhase ]]; then
    cd "${sourceRoot:-.}"
  fi
}

definePhases() {
  if [[ -z ${phases[*]:-} ]]; then
    phases="${prePhases:-} unpackPhase patchPhase ${preConfigurePhases:-} configurePhase ${preBuildPhases:-} buildPhase checkPhase"
    phases+=" ${preInstallPhases:-} installPhase ${preFixupPhases:-} fixupPhase installCheckPhase ${preDistPhases:-} distPhase ${postPhases:-}"
  fi
}

genericBuild() {
  : "${prefix:=${out:-}}"
  export prefix
  if [[ -f ${buildCommandPath:-} ]]; then
    # shellcheck disable=SC1090
    source "$buildCommandPath"
    return
  fi
  if [[ -n ${buildCommand:-} ]]; then
    eval "$buildCommand"
    return
  fi
  definePhases
  # shellcheck disable=SC2154
  for curPhase in ${phases[*]}; do
    runPhase "$curPhase"
  done
}

runHook postHook
if [[ -n ${userHook:-} ]]; then runHook userHook; fi
set +u
