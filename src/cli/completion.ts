import type { Command } from 'commander';

/** A completion script made from the commands themselves. */
export function completionScript(shell: 'bash' | 'zsh', program: Command): string {
  return shell === 'bash' ? bashScript(program) : zshScript(program);
}

const optionsOf = (command: Command): string[] =>
  command.options.flatMap((option) => [option.short, option.long].filter((flag) => flag !== undefined));

function bashScript(program: Command): string {
  const commands = program.commands.map((command) => command.name());
  const cases = program.commands
    .map(
      (command) =>
        `    ${command.name()}) words="${[...optionsOf(command), ...optionsOf(program)].join(' ')}" ;;`,
    )
    .join('\n');
  return `_livegraft() {
  local current=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD-1]} words="" command="" i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case \${COMP_WORDS[i]} in -*) ;; *) command=\${COMP_WORDS[i]}; break ;; esac
  done
  case $previous in
    --model) COMPREPLY=($(compgen -W "hybrid immediate stop lazy" -- "$current")); return ;;
    --pid) COMPREPLY=($(compgen -W "$(cd /proc && echo [0-9]*)" -- "$current")); return ;;
    --source) COMPREPLY=($(compgen -d -- "$current")); return ;;
    --diff|--orig|--patched|--target|-o|--output) COMPREPLY=($(compgen -f -- "$current")); return ;;
  esac
  case $command in
    "") words="${commands.join(' ')} ${optionsOf(program).join(' ')}" ;;
${cases}
  esac
  if [[ $current == -* || -z $command ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  elif [[ $command == completion ]]; then
    COMPREPLY=($(compgen -W "bash zsh" -- "$current"))
  else
    COMPREPLY=($(compgen -f -X '!*.lgp' -- "$current") $(compgen -d -- "$current"))
  fi
}
complete -F _livegraft livegraft
`;
}

function zshScript(program: Command): string {
  const describe = (text: string) => text.replaceAll("'", "'\\''").replaceAll(':', '\\:');
  const commands = program.commands.map((c) => `    '${c.name()}:${describe(c.description())}'`).join('\n');
  const cases = program.commands
    .map(
      (c) =>
        `    ${c.name()}) compadd -- ${[...optionsOf(c), ...optionsOf(program)].join(' ')}; _files -g '*.lgp' ;;`,
    )
    .join('\n');
  return `#compdef livegraft
_livegraft() {
  local -a commands
  commands=(
${commands}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  case $words[CURRENT-1] in
    --model) compadd hybrid immediate stop lazy; return ;;
    --pid) compadd /proc/[0-9]*(:t); return ;;
    --source) _files -/; return ;;
  esac
  case $words[2] in
${cases}
  esac
}
compdef _livegraft livegraft
`;
}
