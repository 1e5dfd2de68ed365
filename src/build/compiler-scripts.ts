/** The shell scripts that stand in for parts of a compiler while a build runs (see `compiler-capture.ts`). */

/**
 * The compiler proper of GCC (cc1, cc1plus): passes the call on with our flags, and notes the source under the driver's
 * process id, which the assembler of the same compilation shares.
 */
export function compilerScript(name: string, folder: string, flags: readonly string[]): string {
  return `#!/bin/sh
${realProgram(name, folder)}
source= previous=
for argument in "$@"; do
  case $argument in -E|-M|-MM|-fsyntax-only) exec "$real" "$@" ;; esac
  case $previous in
    -dump*|-auxbase*|-MF|-MT|-MQ|-include|-imacros|-o|-D|-U|-I) ;;
    *) case $argument in
      -*) ;;
      *.c|*.cc|*.cpp|*.cxx|*.c++|*.cp|*.CPP|*.C|*.i|*.ii) source=$argument ;;
    esac ;;
  esac
  previous=$argument
done
case $source in ''|/*) ;; *) source=$PWD/$source ;; esac
[ -n "$source" ] && printf '%s\\n' "$source" > "$LIVEGRAFT_CAPTURE/$PPID.source"
exec "$real" "$@" ${flags.map(quote).join(' ')}
`;
}

/** The assembler: runs, then keeps a copy of what it wrote for a source that the compiler proper noted. */
export function assemblerScript(folder: string): string {
  return `#!/bin/sh
${realProgram('as', folder)}
"$real" "$@" || exit $?
noted=$LIVEGRAFT_CAPTURE/$PPID.source
[ -f "$noted" ] || exit 0
output=a.out previous=
for argument in "$@"; do
  case $previous in -o) output=$argument ;; esac
  previous=$argument
done
read -r source < "$noted"
rm -f "$noted"
command=$(tr '\\0\\n' '  ' < /proc/$PPID/cmdline)
case $output in
  /*/cc??????.o|/*/cc??????.ltrans*.o)
    # Compiled and linked by one call: the object has no name that lasts, so its source and the call name it.
    key="$source ($command)" ;;
  /*) key=$output ;;
  *) key=$PWD/$output ;;
esac
${record('"$output"')}
`;
}

/** clang: compilations (-c) get our flags, and each object is kept; what it compiles and links at once is compiled a second time for us. */
export function clangScript(real: string, flags: readonly string[]): string {
  const added = flags.map(quote).join(' ');
  return `#!/bin/sh
unset COMPILER_PATH
real=${quote(real)}
compile=link output= previous= sources=
for argument in "$@"; do
  case $previous in -o) output=$argument ;; esac
  case $argument in
    -c) compile=yes ;;
    -E|-M|-MM|-S|-fsyntax-only) exec "$real" "$@" ;;
    -o?*) output=\${argument#-o} ;;
    *.c|*.cc|*.cpp|*.cxx|*.c++|*.C) [ "$previous" = -include ] || sources="$sources
$argument" ;;
  esac
  previous=$argument
done
[ -n "$sources" ] || exec "$real" "$@"
command="$real $*"
if [ "$compile" = yes ]; then
  "$real" "$@" ${added} || exit $?
else
  "$real" "$@" || exit $?
fi
IFS='
'
for source in $sources; do
  object=$output
  if [ "$compile" = link ]; then
    object=$LIVEGRAFT_CAPTURE/$$.tmp
    call=
    # The same call without its other sources and its output.
    ( previous=
      for argument in "$@"; do
        shift
        case $previous in -o) previous= ; continue ;; esac
        previous=$argument
        case $argument in
          "$source") ;;
          -o|-o?*|*.c|*.cc|*.cpp|*.cxx|*.c++|*.C|*.o|*.a|-l*|-Wl,*) continue ;;
        esac
        set -- "$@" "$argument"
      done
      exec "$real" -c "$@" ${added} -o "$object" ) || exit $?
  elif [ -z "$object" ]; then
    object=\${source##*/}
    object=\${object%.*}.o
  fi
  [ -f "$object" ] || continue
  case $source in /*) ;; *) source=$PWD/$source ;; esac
  if [ "$compile" = link ]; then key="$source ($command)"; else
    case $object in /*) key=$object ;; *) key=$PWD/$object ;; esac
  fi
  ${record('"$object"')}
done
`;
}

/** Copies an object and says what it is: key, source and command, a line each. Numbered by process: unique in a build. */
function record(object: string): string {
  return `record=$LIVEGRAFT_CAPTURE/$$
while [ -e "$record.o" ]; do record=\${record}x; done
cp ${object} "$record.o" || exit $?
printf '%s\\n%s\\n%s\\n' "$key" "$source" "$command" > "$record.txt"`;
}

/** Sets \`real\` to the driver's own program of a name; asked once for each driver. */
function realProgram(name: string, folder: string): string {
  return `driver=$(readlink /proc/$PPID/exe)
known=${quote(folder)}/$(printf '%s' "$driver" | tr '/' '_').${name}
if [ -f "$known" ]; then
  read -r real < "$known"
else
  real=$(unset COMPILER_PATH; "$driver" -print-prog-name=${name})
  printf '%s\\n' "$real" > "$known.$$" && mv "$known.$$" "$known"
fi`;
}

function quote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
