import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/**
 * Fetches a Debian source package by name with an apt state of its own, derived from the machine's own Debian sources:
 * the system's configuration is only read. Returns the unpacked tree, with Debian's patches applied.
 */
export function fetchDebianSource(name: string, folder: string): string {
  const tree = join(folder, 'tree');
  if (existsSync(tree)) return tree;
  const run = preparePrivateApt(folder, 'deb-src');
  run('apt-get', ['source', '--download-only', '-q', name]);
  const description = readdirSync(folder).find(
    (file) => file.startsWith(`${name}_`) && file.endsWith('.dsc'),
  );
  if (description === undefined) throw new Error(`apt-get fetched no source package ${name}`);
  run('dpkg-source', ['-x', description, tree]);
  return tree;
}

/** Fetches a Debian binary package in the same way and unpacks it, without installing anything. */
export function fetchDebianPackage(name: string, folder: string): string {
  const tree = join(folder, 'tree');
  if (existsSync(tree)) return tree;
  const run = preparePrivateApt(folder, 'deb');
  run('apt-get', ['download', '-q', name]);
  const file = readdirSync(folder).find((entry) => entry.startsWith(`${name}_`) && entry.endsWith('.deb'));
  if (file === undefined) throw new Error(`apt-get fetched no package ${name}`);
  run('dpkg-deb', ['-x', file, tree]);
  return tree;
}

/** Makes apt's folders, its source list, and updates them; returns how to run a command with them. */
function preparePrivateApt(folder: string, type: 'deb' | 'deb-src') {
  for (const part of ['state/lists/partial', 'cache/archives/partial', 'parts'])
    mkdirSync(join(folder, part), { recursive: true });
  writeSources(join(folder, 'parts'), type);
  const configuration = join(folder, 'apt.conf');
  writeFileSync(
    configuration,
    [
      `Dir::State "${join(folder, 'state')}";`,
      `Dir::Cache "${join(folder, 'cache')}";`,
      'Dir::Etc::sourcelist "/dev/null";',
      `Dir::Etc::sourceparts "${join(folder, 'parts')}";`,
      'APT::Sandbox::User "root";',
    ].join('\n'),
  );
  const run = (command: string, args: readonly string[]) => {
    const env = { ...process.env, APT_CONFIG: configuration };
    const { status, stdout, stderr, error } = spawnSync(command, args, {
      cwd: folder,
      encoding: 'utf8',
      env,
    });
    if (status !== 0)
      throw new Error(
        `${command} ${args.join(' ')} failed:\n${error?.message ?? ''}${stdout ?? ''}${stderr ?? ''}`,
      );
  };
  run('apt-get', ['update', '-q']);
  return run;
}

/** Copies the machine's Debian entries, in either of apt's formats, as entries of one type. */
function writeSources(into: string, type: 'deb' | 'deb-src'): void {
  const parts = '/etc/apt/sources.list.d';
  const files = [
    '/etc/apt/sources.list',
    ...(existsSync(parts) ? readdirSync(parts).map((file) => join(parts, file)) : []),
  ].filter((file) => existsSync(file));
  let found = false;
  files.forEach((file, index) => {
    const text = readFileSync(file, 'utf8');
    if (file.endsWith('.sources')) {
      const stanzas = text
        .split(/\n\s*\n/)
        .filter((stanza) => /^URIs:.*\/debian(-security)?\/?\s*$/m.test(stanza));
      if (stanzas.length === 0) return;
      const sources = stanzas.map((stanza) => stanza.replace(/^Types:.*$/m, `Types: ${type}`));
      writeFileSync(join(into, `part${index}.sources`), `${sources.join('\n\n')}\n`);
    } else {
      const lines = text.split('\n').filter((line) => /^deb\s.*\/debian(-security)?\/?\s/.test(line));
      if (lines.length === 0) return;
      writeFileSync(
        join(into, `part${index}.list`),
        `${lines.map((line) => line.replace(/^deb/, type)).join('\n')}\n`,
      );
    }
    found = true;
  });
  if (!found) throw new Error('this machine has no Debian package sources to derive a source list from');
}
