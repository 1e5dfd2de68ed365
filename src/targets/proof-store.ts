import { existsSync, mkdirSync, readFileSync, renameSync, unlinkSync, writeFileSync } from 'node:fs';
import { homedir, userInfo } from 'node:os';
import { dirname, join } from 'node:path';
import { LivegraftError, ParseError } from '../base/errors.js';
import { PROOF_VERSION, type Proof, parseProof } from '../validate/proof.js';

/**
 * Proofs kept in the user's cache folder, one file a build-id (XDG Base Directory Specification). A file is replaced as
 * a whole, so that concurrent writers leave one of theirs and readers never see half of one.
 */
export class ProofStore {
  readonly #folder: string;

  constructor(folder = defaultFolder()) {
    this.#folder = folder;
  }

  get folder(): string {
    return this.#folder;
  }

  /** Nothing was ever kept: what finding out build-ids costs can be saved. */
  get isEmpty(): boolean {
    return !existsSync(this.#folder);
  }

  /** Undefined when none is kept, or one that can't be used: a proof only ever adds to what is known. */
  find(buildId: string): Proof | undefined {
    if (!isBuildId(buildId)) return undefined;
    const path = this.#path(buildId);
    try {
      const proof = parseProof(readFileSync(path), path);
      return proof?.buildId === buildId ? proof : undefined;
    } catch (error) {
      if (error instanceof ParseError || isFileError(error)) return undefined;
      throw error;
    }
  }

  /** Throws `proof-not-kept` when the folder can't be made or written to. */
  keep(buildId: string, bytes: Uint8Array): void {
    if (!isBuildId(buildId)) return;
    const path = this.#path(buildId);
    const temporary = `${path}.${process.pid}.${Math.random().toString(36).slice(2)}`;
    try {
      makeFolder(this.#folder);
      writeFileSync(temporary, bytes);
      renameSync(temporary, path);
    } catch (cause) {
      remove(temporary);
      throw new LivegraftError('proof-not-kept', `${path} can't be written: ${(cause as Error).message}`, {
        remedy: 'make the cache folder writable, set XDG_CACHE_HOME, or use --no-keep',
        cause,
      });
    }
  }

  #path(buildId: string): string {
    return join(this.#folder, `${buildId}.v${PROOF_VERSION}.proof`);
  }
}

function defaultFolder(): string {
  const base = process.env.XDG_CACHE_HOME;
  // An empty HOME would mean the working folder: what the user database says then.
  const home = homedir().startsWith('/') ? homedir() : userInfo().homedir;
  return join(base?.startsWith('/') === true ? base : join(home, '.cache'), 'livegraft', 'proofs');
}

/** Not `recursive`: Node.js 20 tries for ever where a folder's parent is there and takes no new ones (`/proc`). */
function makeFolder(folder: string): void {
  try {
    mkdirSync(folder);
  } catch (error) {
    if (isFileError(error, 'EEXIST')) return;
    if (!isFileError(error, 'ENOENT') || dirname(folder) === folder) throw error;
    makeFolder(dirname(folder));
    mkdirSync(folder);
  }
}

/** Of what may never have been written. */
function remove(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (!isFileError(error)) throw error;
  }
}

/** Build-ids come from files: one that is no hex must not become a path. */
function isBuildId(text: string): boolean {
  return /^[0-9a-f]{2,128}$/.test(text);
}

function isFileError(error: unknown, code?: string): boolean {
  if (!(error instanceof Error && 'code' in error && typeof error.code === 'string')) return false;
  return code === undefined || error.code === code;
}
