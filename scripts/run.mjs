#!/usr/bin/env node
// Entry of every npm script: sets up what a task needs on a fresh clone, then runs it. Plain Node, no dependencies.
// Everything said here goes to stderr, so that a task's own output can be piped.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { PACKAGES } from './packages.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const TASKS = {
  check: ['scripts/check.mjs'],
  'test:kernel': ['node_modules/vitest/vitest.mjs', 'run', '--config', 'vitest.long.config.ts'],
  test: ['node_modules/vitest/vitest.mjs', 'run'],
  demo: ['--import', 'tsx', 'examples/kvserver/demo.ts'],
  'demo:redis': ['--import', 'tsx', 'examples/redis/demo.ts'],
  'bench:apply': ['--import', 'tsx', 'bench/apply.ts'],
  'bench:engine': ['--import', 'tsx', 'bench/engine.ts'],
  'bench:stack': ['--import', 'tsx', 'bench/stack.ts'],
  'bench:validate': ['--import', 'tsx', 'bench/validate.ts'],
  'demo:kernel': ['--import', 'tsx', 'examples/kernel/demo.ts'],
  'bench:kernel': ['--import', 'tsx', 'bench/kernel.ts'],
  'soak:kernel': ['--import', 'tsx', 'test/soak/kernel.ts'],
  kernels: ['--import', 'tsx', 'test/kernels/run.ts'],
  verdicts: ['--import', 'tsx', 'test/oracle/verdicts.ts'],
  'oracle:objtool': ['--import', 'tsx', 'test/oracle/objtool-agreement.ts'],
  'oracle:compilers': ['--import', 'tsx', 'test/oracle/compiler-tables.ts'],
  'oracle:decoder': ['--import', 'tsx', 'test/oracle/decoder/compare.ts'],
  mutations: ['--import', 'tsx', 'test/mutation/run.ts'],
  simulate: ['--import', 'tsx', 'test/simulation/simulate.ts'],
  faults: ['--import', 'tsx', 'test/faults/run.ts'],
  fuzz: ['--import', 'tsx', 'fuzz/run.ts'],
};

function say(text) {
  process.stderr.write(`${text}\n`);
}

function fail(text) {
  say(`livegraft: ${text}`);
  process.exit(1);
}

function expectNode() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major < 20 || (major === 20 && minor < 19)) {
    fail(`Node ${process.versions.node} is too old; install Node 20.19 or newer`);
  }
}

/** By the list that npm keeps of what it has installed, whoever called it: installing takes the packages away for a while. */
function isInstalledAsLocked() {
  const packagesOf = (...path) => {
    const file = join(root, ...path);
    return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')).packages : {};
  };
  const installed = packagesOf('node_modules', '.package-lock.json');
  const locked = Object.entries(packagesOf('package-lock.json')).filter(([path]) => path !== '');
  return locked.every(([path, { version, integrity, optional }]) => {
    const found = installed[path];
    // Those for other systems are optional, and not there.
    if (found === undefined) return optional === true;
    return found.version === version && found.integrity === integrity;
  });
}

function installModules() {
  if (isInstalledAsLocked()) return;
  say('installing npm packages …');
  const result = spawnSync('npm', ['ci', '--no-audit', '--no-fund'], { cwd: root, stdio: ['ignore', 2, 2] });
  if (result.status !== 0) fail('npm ci failed; see its messages above');
}

function isInstalled(name) {
  const result = spawnSync('dpkg-query', ['-W', '-f', '$' + '{Status}', name], { encoding: 'utf8' });
  return result.status === 0 && result.stdout.includes('install ok installed');
}

function installPackages(task) {
  const wanted = PACKAGES[task] ?? [];
  if (wanted.length === 0) return;
  if (spawnSync('dpkg-query', ['--version']).status !== 0) {
    const missing = wanted.filter((p) => p.command && spawnSync('which', [p.command]).status !== 0);
    if (missing.length > 0) fail(`install these first: ${missing.map((p) => p.command).join(', ')}`);
    return;
  }
  const missing = wanted.map((p) => p.name).filter((name) => !isInstalled(name));
  if (missing.length === 0) return;
  if (process.getuid?.() !== 0) fail(`install these packages first: apt-get install ${missing.join(' ')}`);
  say(`installing ${missing.join(' ')} …`);
  const apt = (args) =>
    spawnSync('apt-get', args, {
      stdio: ['ignore', 2, 2],
      env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
    }).status === 0;
  const install = ['install', '-y', '-q', '--no-install-recommends', ...missing];
  if (!apt(install) && !(apt(['update', '-q']) && apt(install)))
    fail(`apt-get could not install ${missing.join(' ')}`);
}

function newest(folder) {
  let time = 0;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    time = Math.max(time, entry.isDirectory() ? newest(path) : statSync(path).mtimeMs);
  }
  return time;
}

function buildIfStale() {
  const bundle = join(root, 'dist', 'livegraft.code');
  if (
    existsSync(bundle) &&
    statSync(bundle).mtimeMs > Math.max(newest(join(root, 'src')), newest(join(root, 'bin')))
  )
    return;
  execFileSync(process.execPath, [join(root, 'scripts', 'build.mjs')], { stdio: ['ignore', 2, 2] });
}

const [task, ...args] = process.argv.slice(2);
const command = TASKS[task];
if (command === undefined) fail(`unknown task "${task}"; there are: ${Object.keys(TASKS).join(', ')}`);
expectNode();
installModules();
installPackages(task);
buildIfStale();
const result = spawnSync(process.execPath, [...command, ...args], { cwd: root, stdio: 'inherit' });
process.exit(result.status ?? 1);
