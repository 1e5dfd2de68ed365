import { counted } from '../base/counted.js';
import { LivegraftError } from '../base/errors.js';
import { type CallbackReport, passMomentAtOnce } from '../engine/callbacks.js';
import type { Patch } from '../patch/content.js';
import { parsePatch } from '../patch/file.js';
import { Doorbell } from '../targets/process/doorbell.js';
import { attendLeaving, findLeavers } from '../targets/process/leaving-objects.js';
import {
  installDoorbell,
  type ObjectChanges,
  ObjectWatch,
  removeDoorbell,
} from '../targets/process/object-watch.js';
import { callbackObjectsOf } from '../targets/process/patch-callbacks.js';
import { sha256 } from '../targets/process/patch-loader.js';
import { type LeftObject, pendingObjects } from '../targets/process/patch-objects.js';
import { settleObjects } from '../targets/process/patch-register.js';
import type { ProcessSession } from '../targets/process/process-session.js';
import type { ProcessSpace } from '../targets/process/process-space.js';
import type { RegisteredPatch } from '../targets/process/registry.js';
import { readPatchFile, stepsOf } from './operation-support.js';
import type { OperationEvent } from './operations.js';

/** The objects of patches, as far as the operations on processes have to do with them. */

type OnEvent = (event: OperationEvent) => void;

export function tellPending(patch: RegisteredPatch, notice: (text: string) => void): void {
  for (const { name, functions } of pendingObjects(patch))
    notice(
      `${name} is not loaded: ${counted(functions.length, 'function')} of it ${functions.length === 1 ? 'stays' : 'stay'} pending. livegraft watch patches it as it comes; after that, applying the patch again does`,
    );
}

/** Brings the registry in line with the libraries that are there. */
export function settle(session: ProcessSession, onEvent: (event: OperationEvent) => void): void {
  tellLeft(
    settleObjects(session, (part) => takeBackCallbacks(session, part, onEvent)),
    onEvent,
  );
}

export function tellLeft(left: readonly LeftObject[], onEvent: OnEvent): void {
  const start = performance.now();
  for (const { patch, object } of left) {
    onEvent({
      kind: 'object',
      change: 'left',
      patch: patch.name,
      object: object.name,
      detail: undefined,
      atMs: performance.now() - start,
    });
  }
}

/** Of a patch that is given up before its install: what its pre-patch callback did, its post-unpatch one undoes. */
export function takeBackCallbacks(
  session: ProcessSession,
  patch: RegisteredPatch,
  onEvent: (event: OperationEvent) => void,
): void {
  const target = { ...session, inspector: session.inspector() };
  passMomentAtOnce(callbackObjectsOf(target, patch), 'disabled', tellCallback(onEvent));
}

export function tellCallback(onEvent: OnEvent): (report: CallbackReport) => void {
  const start = performance.now();
  return ({ object, callback, failure }) =>
    onEvent({
      kind: 'callback',
      object,
      callback,
      failure: failure?.message,
      atMs: performance.now() - start,
    });
}

/** The file that a patch was applied from. Throws when it is not there any more. */
export function contentOf(patch: RegisteredPatch): Patch {
  const content = parsePatch(readPatchFile(patch.path), patch.path, sha256);
  if (content.id === patch.id) return content;
  throw new LivegraftError('patch-changed', `${patch.path} is not the patch ${patch.name} any more`, {
    remedy: 'apply the patch again from the file that it was applied from',
    details: { path: patch.path, patch: patch.id },
  });
}

/** Tells what became of objects that came or went. */
export function tellChanges({ left, patched, refused }: ObjectChanges, onEvent: OnEvent): void {
  const start = performance.now();
  const tell = (change: 'patched' | 'refused', patch: RegisteredPatch, object: string, detail?: string) =>
    onEvent({ kind: 'object', change, patch: patch.name, object, detail, atMs: performance.now() - start });
  tellLeft(left, onEvent);
  for (const { patch, object } of patched) tell('patched', patch, object);
  for (const { patch, object, error } of refused) tell('refused', patch, object, error.message);
}

/** One that a killed livegraft has left: nobody waits at it, but it is still in the way. */
export function dropDeadDoorbell(session: ProcessSession): void {
  const registered = session.registry?.doorbell;
  if (registered !== undefined && !new Doorbell(session.memory, registered).isWatched)
    removeDoorbell(session);
}

/** While a command holds the threads, it answers the doorbell itself. */
export interface DoorbellDuty {
  attend(space: ProcessSpace): void;
  /** Gives the duty up. A doorbell that was made for this command goes; true then. Threads must be seized. */
  end(): boolean;
}

/**
 * Takes up the doorbell of a watch, if there is one; else makes one when a patch waits for objects, or has callbacks for some that may go. Undefined where there is
 * nothing to attend to.
 */
export function takeDoorbell(session: ProcessSession, onEvent: OnEvent): DoorbellDuty | undefined {
  const { registry } = session;
  if (registry === undefined) return undefined;
  const there = registry.doorbell && new Doorbell(session.memory, registry.doorbell);
  const isWatched = there?.isWatched === true;
  let bell = there;
  if (!isWatched) {
    const isPending = registry.patches.some((patch) => pendingObjects(patch).length > 0);
    if (bell === undefined && !isPending && findLeavers(registry.patches).length === 0) return undefined;
    try {
      bell = new Doorbell(session.memory, installDoorbell(session));
    } catch (error) {
      if (!(error instanceof LivegraftError) || error.code !== 'no-doorbell') throw error;
      stepsOf(onEvent).notice(error.message);
      return undefined;
    }
  }
  if (bell === undefined) return undefined;
  const watch = new ObjectWatch(session, bell);
  const giveUp = (part: RegisteredPatch) => takeBackCallbacks(session, part, onEvent);
  const attend = () => {
    // Read once: what rings in the middle of this may be about objects that leave.
    const { rings } = bell;
    if (rings !== bell.answered && bell.isLeaving) {
      attendLeaving(session, bell, tellCallback(onEvent));
      watch.learn(session.modules, rings);
    }
    const changes = watch.attend(session, rings, contentOf, giveUp);
    if (changes !== undefined) tellChanges(changes, onEvent);
    return changes !== undefined;
  };
  return {
    attend(space) {
      session.registry = space.registry;
      if (!attend()) return;
      space.registry = session.registry;
      space.inspector.refresh();
    },
    end() {
      attend();
      if (isWatched) return false;
      removeDoorbell(session);
      return true;
    },
  };
}
