import { spawnSync } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import type { Io } from './io.js';
import { createProgram, main } from './main.js';

function fakeIo(): Io & { readonly written: { out: string; err: string } } {
  const written = { out: '', err: '' };
  return {
    written,
    out: (text) => {
      written.out += text;
    },
    err: (text) => {
      written.err += text;
    },
    isTerminal: false,
    errorColumns: undefined,
    columns: 80,
    rows: 24,
    noColor: true,
    onInterrupt: () => () => {},
    onReverse: () => () => {},
  };
}

async function run(...argv: string[]): Promise<{ code: number; out: string; err: string }> {
  const io = fakeIo();
  return { code: await main(argv, io), ...io.written };
}

describe('the command line', () => {
  const commands = createProgram(fakeIo(), () => {}).commands.map((command) => command.name());

  it('has every command of the manual', () => {
    const documented = [
      'build',
      'inspect',
      'apply',
      'status',
      'revert',
      'stack',
      'soak',
      'demo',
      'completion',
    ];
    expect(commands).toEqual(expect.arrayContaining(documented));
  });

  it.each(['build', 'inspect', 'apply', 'status', 'revert', 'stack', 'soak'])(
    'shows examples for %s',
    async (name) => {
      const help = await run(name, '--help');
      expect(help).toMatchObject({ code: 0, err: '' });
      expect(help.out).toMatch(new RegExp(`Examples?:\n +\\$ livegraft ${name}`));
    },
  );

  it.each([
    ['an unknown command', ['frobnicate']],
    ['an unknown option', ['status', '--frobnicate']],
    ['a missing pid', ['stack']],
    ['a pid that is none', ['apply', '--pid', '12x', 'fix.lgp']],
    ['a time that is none', ['apply', '--pid', '1', '--timeout', '-3', 'fix.lgp']],
    ['an unknown model', ['apply', '--pid', '1', '--model', 'lucky', 'fix.lgp']],
    ['a seed for a kernel', ['soak', '--gdb', 'x', '--vmlinux', 'y', '--seed', '1']],
    ['an unknown shell', ['completion', 'fish']],
    ['a build of nothing', ['build', '--target', 'x', '-o', 'y']],
  ])('answers %s with 2 and a word to stderr', async (_, argv) => {
    const { code, out, err } = await run(...argv);
    expect(code).toBe(2);
    expect(out).toBe('');
    expect(err).toMatch(/\w/);
  });

  it('answers what it refuses with 1, and with one line of JSON where that is asked for', async () => {
    expect((await run('inspect', '/nowhere/fix.lgp')).code).toBe(1);
    const { code, out, err } = await run('--json', 'inspect', '/nowhere/fix.lgp');
    expect([code, err]).toEqual([1, '']);
    expect(JSON.parse(out)).toMatchObject({ event: 'error', code: 'patch-unreadable' });
  });

  it.each([
    ['before it', ['--json', 'apply', '--pid', '12x', 'fix.lgp']],
    ['behind it', ['apply', '--pid', '12x', 'fix.lgp', '--json']],
  ])('says in JSON what is wrong with a command line, %s', async (_, argv) => {
    const { code, out } = await run(...argv);
    expect(code).toBe(2);
    expect(JSON.parse(out)).toMatchObject({
      event: 'error',
      code: 'usage',
      message: expect.stringMatching('12x'),
    });
  });

  it.each([
    ['suppressions that are not there', ['--suppress', '/nowhere/suppressions', process.execPath]],
    ['a device without an end', ['/dev/zero']],
    ['a folder', ['/']],
  ])('validate answers %s with 2: 1 would be findings', async (_, argv) => {
    const { code, out, err } = await run('validate', '--no-keep', ...argv);
    expect([code, out]).toEqual([2, '']);
    expect(err).toMatch('what to do');
  });

  it('completes commands and options in bash', async () => {
    const { code, out } = await run('completion', 'bash');
    expect(code).toBe(0);
    const complete = (...words: string[]) => {
      const script = `${out}
COMP_WORDS=(${words.map((word) => `'${word}'`).join(' ')}); COMP_CWORD=${words.length - 1}
_livegraft; printf '%s\\n' "\${COMPREPLY[@]}"`;
      const { status, stdout, stderr } = spawnSync('bash', ['--norc', '-c', script], { encoding: 'utf8' });
      expect([status, stderr]).toEqual([0, '']);
      return stdout.trim().split('\n').sort();
    };
    expect(complete('livegraft', 're')).toEqual(['revert']);
    expect(complete('livegraft', 'apply', '--mo')).toEqual(['--model']);
    expect(complete('livegraft', 'apply', '--model', 'h')).toEqual(['hybrid']);
    expect(complete('livegraft', 'completion', 'z')).toEqual(['zsh']);
    expect(complete('livegraft', '').filter((word) => !word.startsWith('-'))).toEqual([...commands].sort());
  });

  it('lists every command for zsh', async () => {
    const { code, out } = await run('completion', 'zsh');
    expect(code).toBe(0);
    expect(out).toMatch(/^#compdef livegraft\n/);
    for (const name of commands) expect(out).toContain(`'${name}:`);
  });
});
