import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
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

/** Fetches a Debian binary package in the same way and unpacks it, without installing anything: the newest version, or the given one. */
export function fetchDebianPackage(name: string, folder: string, version?: string): string {
  const tree = join(folder, 'tree');
  if (existsSync(tree)) return tree;
  fetchPackage(preparePrivateApt(folder, 'deb'), name, folder, tree, version);
  return tree;
}

/** Packages of one suite of Debian, which need not be the machine's: its mirror has them all. Nothing is installed. */
export class DebianSuite {
  readonly #folder: string;
  readonly #suite: string;
  #run: ReturnType<typeof preparePrivateApt> | undefined;

  /** `folder` keeps what is fetched. */
  constructor(suite: string, folder: string) {
    this.#suite = suite;
    this.#folder = folder;
  }

  /** The first package that `name` depends on whose name begins so: what a metapackage stands for. Asked for once. */
  dependencyOf(name: string, prefix: string): string {
    const known = join(this.#folder, `${name}.depends`);
    if (!existsSync(known)) writeFileSync(known, this.#apt('apt-cache', ['depends', name]));
    const depends = readFileSync(known, 'utf8');
    const found = depends.split('\n').find((line) => line.trim().startsWith(`Depends: ${prefix}`));
    if (found === undefined)
      throw new Error(`${name} of ${this.#suite} depends on no ${prefix}…: ${depends}`);
    return found.trim().slice('Depends: '.length);
  }

  /** Fetches a package and unpacks it into the tree `into` of this suite's folder, which several may share; returns the tree. */
  fetch(name: string, into: string): string {
    const tree = join(this.#folder, into);
    const mark = join(this.#folder, `${name}.is-unpacked`);
    if (existsSync(mark)) return tree;
    fetchPackage((command, args) => this.#apt(command, args), name, this.#folder, tree);
    writeFileSync(mark, '');
    return tree;
  }

  #apt(command: string, args: readonly string[]): string {
    this.#run ??= preparePrivateApt(this.#folder, 'deb', this.#suite);
    return this.#run(command, args);
  }
}

function fetchPackage(run: AptRun, name: string, folder: string, tree: string, version?: string): void {
  run('apt-get', ['download', '-q', version === undefined ? name : `${name}=${version}`]);
  const file = readdirSync(folder).find((entry) => entry.startsWith(`${name}_`) && entry.endsWith('.deb'));
  if (file === undefined) throw new Error(`apt-get fetched no package ${name}`);
  run('dpkg-deb', ['-x', file, tree]);
  rmSync(join(folder, file));
}

/** Runs a command of apt or dpkg with the private configuration; returns what it prints, throws when it fails. */
type AptRun = (command: string, args: readonly string[]) => string;

/**
 * Makes apt's folders, its source list, and updates them; returns how to run a command with them. With a suite, the machine's
 * main archive is asked for that instead of the machine's own.
 */
function preparePrivateApt(folder: string, type: 'deb' | 'deb-src', suite?: string): AptRun {
  for (const part of ['state/lists/partial', 'cache/archives/partial', 'parts'])
    mkdirSync(join(folder, part), { recursive: true });
  writeSources(join(folder, 'parts'), type, suite);
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
      timeout: APT_TIMEOUT_MS,
    });
    if (status !== 0)
      throw new Error(
        `${command} ${args.join(' ')} failed:\n${error?.message ?? ''}${stdout ?? ''}${stderr ?? ''}`,
      );
    return stdout;
  };
  run('apt-get', ['update', '-q']);
  return run;
}

/** Whatever is fetched, a connection that stalls ends. */
const APT_TIMEOUT_MS = 900_000;

const STANZA = /^URIs:.*\/debian(-security)?\/?\s*$/m;
const MAIN_STANZA = /^URIs:.*\/debian\/?\s*$/m;
const LINE = /^deb\s.*\/debian(-security)?\/?\s/;
const MAIN_LINE = /^(deb(?:-src)?\s(?:.*\s)?\S+\/debian\/?)\s.*$/;

/** Copies the machine's Debian entries, in either of apt's formats, as entries of one type, and of one suite where it is given. */
function writeSources(into: string, type: 'deb' | 'deb-src', suite: string | undefined): void {
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
        .filter((stanza) => (suite === undefined ? STANZA : MAIN_STANZA).test(stanza));
      if (stanzas.length === 0) return;
      const sources = stanzas
        .map((stanza) => stanza.replace(/^Types:.*$/m, `Types: ${type}`))
        .map((stanza) => (suite === undefined ? stanza : stanza.replace(/^Suites:.*$/m, `Suites: ${suite}`)));
      writeFileSync(join(into, `part${index}.sources`), `${sources.join('\n\n')}\n`);
    } else {
      const lines = text
        .split('\n')
        .filter((line) => (suite === undefined ? LINE : MAIN_LINE).test(line))
        .map((line) => line.replace(/^deb/, type))
        .map((line) => (suite === undefined ? line : line.replace(MAIN_LINE, `$1 ${suite} main`)));
      if (lines.length === 0) return;
      writeFileSync(join(into, `part${index}.list`), `${[...new Set(lines)].join('\n')}\n`);
    }
    found = true;
  });
  if (!found) throw new Error('this machine has no Debian package sources to derive a source list from');
}
