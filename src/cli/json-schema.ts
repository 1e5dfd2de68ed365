import * as z from 'zod';
import { SCHEMA_VERSION } from './json-version.js';

/** The lines that `--json` prints, one object a line (docs/json-output.md). Addresses are `0x…` text. */
const common = { schemaVersion: z.literal(SCHEMA_VERSION) };
const ms = z.number().nonnegative();
const address = z.string().regex(/^0x[0-9a-f]+$/);
const frame = z.strictObject({ address, symbol: z.string().nullable(), module: z.string().nullable() });

const reason = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('busy'), function: z.string(), frame: z.int(), frames: z.array(frame) }),
  z.strictObject({
    kind: z.literal('unreliable'),
    cause: z.string(),
    detail: z.string(),
    frames: z.array(frame),
  }),
  z.strictObject({ kind: z.literal('unstoppable'), detail: z.string() }),
  z.strictObject({ kind: z.literal('waiting') }),
  z.strictObject({ kind: z.literal('beforeBarrier'), barrier: z.string() }),
]);

const direction = z.enum(['patch', 'unpatch']);
const task = { task: z.string(), name: z.string() };

/** `longStops`: those of more than 2 ms. */
const stops = { stops: z.int(), longestMs: ms, totalMs: ms, longStops: z.int() };

const transitionResult = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('complete'),
    direction,
    tasks: z.int(),
    durationMs: ms,
    forced: z.boolean(),
  }),
  z.strictObject({
    kind: z.literal('incomplete'),
    direction,
    switched: z.int(),
    durationMs: ms,
    stragglers: z.array(z.strictObject({ ...task, attempts: z.int(), sinceMs: ms, reason })),
  }),
]);

/** Of `status --explain`. `reason` is null when nothing holds the thread any more. */
const stragglerReport = z.strictObject({
  tid: z.int(),
  name: z.string(),
  since: z.string().nullable(),
  attempts: z.int().nonnegative(),
  /** `now`, or when the livegraft that holds the threads last looked. */
  seenAt: z.string(),
  reason: reason.nullable(),
  frames: z.array(frame),
  blockingFrame: z.int().nullable(),
  releasedBy: z.string(),
});

const processStatus = z.strictObject({
  pid: z.int(),
  executable: z.string(),
  patches: z.array(
    z.strictObject({
      id: z.string(),
      name: z.string(),
      state: z.enum(['applying', 'applied', 'reverting']),
      forced: z.boolean(),
      appliedAt: z.string(),
      path: z.string(),
      objects: z.array(
        z.strictObject({
          name: z.string(),
          state: z.enum(['patched', 'partly', 'pending', 'unpatched', 'unfit']),
          functions: z.array(z.string()),
        }),
      ),
      functions: z.array(
        z.strictObject({ object: z.string(), name: z.string(), oldAddress: address, newAddress: address }),
      ),
    }),
  ),
  transition: z
    .strictObject({
      patchId: z.string(),
      direction,
      model: z.string(),
      startedAt: z.string().nullable(),
      /** Another process holds the threads: `tasks` is empty then. */
      isHeld: z.boolean(),
      /** Null without `--explain`. */
      stragglers: z.array(stragglerReport).nullable(),
      tasks: z.array(
        z.strictObject({ tid: z.int(), name: z.string(), state: z.enum(['unpatched', 'patched']) }),
      ),
    })
    .nullable(),
});

const count = z.int().nonnegative();
const findingPlace = z.strictObject({
  section: z.string(),
  address,
  function: z.string().nullable(),
  functionOffset: z.int().nullable(),
  file: z.string().nullable(),
  line: z.int().nullable(),
  column: z.int().nullable(),
});
const finding = z.strictObject({
  code: z.string(),
  level: z.enum(['error', 'warning', 'note']),
  source: z.string().nullable(),
  message: z.string(),
  claimed: z.string().nullable(),
  derived: z.string().nullable(),
  remedy: z.string(),
  repeats: count,
  place: findingPlace.nullable(),
  from: findingPlace.nullable(),
});

export const jsonLineSchema = z.discriminatedUnion('event', [
  z.strictObject({ ...common, event: z.literal('step'), step: z.string(), detail: z.string() }),
  z.strictObject({ ...common, event: z.literal('notice'), text: z.string() }),
  z.strictObject({
    ...common,
    event: z.literal('object'),
    change: z.enum(['patched', 'left', 'refused']),
    patch: z.string(),
    object: z.string(),
    detail: z.string().nullable(),
    atMs: ms,
  }),
  z.strictObject({
    ...common,
    event: z.literal('combined'),
    path: z.string(),
    name: z.string(),
    objects: z.array(z.strictObject({ name: z.string(), functions: z.array(z.string()) })),
  }),
  z.strictObject({ ...common, event: z.literal('started'), direction, model: z.string(), tasks: z.int() }),
  z.strictObject({ ...common, event: z.literal('taskSwitched'), ...task, attempts: z.int(), atMs: ms }),
  z.strictObject({
    ...common,
    event: z.literal('taskWaiting'),
    ...task,
    attempts: z.int(),
    reason,
    atMs: ms,
  }),
  z.strictObject({ ...common, event: z.literal('taskCreated'), ...task, state: z.string(), atMs: ms }),
  z.strictObject({ ...common, event: z.literal('taskExited'), task: z.string(), atMs: ms }),
  z.strictObject({
    ...common,
    event: z.literal('callback'),
    object: z.string(),
    callback: z.enum(['prePatch', 'postPatch', 'preUnpatch', 'postUnpatch']),
    failure: z.string().nullable(),
    atMs: ms,
  }),
  z.strictObject({ ...common, event: z.literal('reversing'), direction, why: z.string(), atMs: ms }),
  z.strictObject({ ...common, event: z.literal('progress'), switched: z.int(), total: z.int(), atMs: ms }),
  z.strictObject({ ...common, event: z.literal('finished'), direction, atMs: ms }),
  z.strictObject({
    ...common,
    event: z.literal('transition'),
    patch: z.strictObject({ id: z.string(), name: z.string() }),
    result: transitionResult,
    /** Of a kernel only: how often the guest stood still, altogether and by what was done meanwhile. */
    guest: z
      .strictObject({ ...stops, phases: z.array(z.strictObject({ phase: z.string(), ...stops })) })
      .optional(),
  }),
  z.strictObject({ ...common, event: z.literal('status'), processes: z.array(processStatus) }),
  z.strictObject({
    ...common,
    event: z.literal('stack'),
    pid: z.int(),
    tasks: z.array(
      z.strictObject({
        tid: z.int(),
        name: z.string(),
        reliable: z.boolean(),
        reason: z.strictObject({ code: z.string(), detail: z.string() }).nullable(),
        frames: z.array(
          z.strictObject({
            index: z.int(),
            address,
            stackPointer: address,
            symbol: z.string().nullable(),
            module: z.string().nullable(),
            by: z.string(),
          }),
        ),
      }),
    ),
  }),
  z.strictObject({
    ...common,
    event: z.literal('soak'),
    switches: z.int(),
    unreliable: z.int(),
    tasks: z.int(),
    /** Of a kernel only: how many of the tasks were kernel threads. */
    kthreads: z.int().optional(),
    /** Of a kernel only: names of those of them whose stack was not reliable at some time. */
    unreliableKthreads: z.array(z.string()).optional(),
    /** Of a process only: how many of the walks were at random instants, not at system-call stops. */
    instants: z.int().optional(),
    endedBy: z.enum(['count', 'time', 'interrupt', 'exit', 'exec']),
    durationMs: ms,
    findings: z.array(
      z.strictObject({ cause: z.string(), place: z.string(), count: z.int(), detail: z.string() }),
    ),
  }),
  z.strictObject({
    ...common,
    event: z.literal('kernelStatus'),
    release: z.string(),
    patches: z.array(
      z.strictObject({
        id: z.string(),
        name: z.string(),
        state: z.enum(['applying', 'applied', 'reverting', 'reverted']),
        forced: z.boolean(),
        appliedAt: z.string(),
        functions: z.array(
          z.strictObject({
            object: z.string(),
            name: z.string(),
            entry: z.enum(['redirected', 'original', 'moduleUnloaded', 'moduleReloaded']),
            oldAddress: address,
            newAddress: address,
          }),
        ),
        /** Of the modules that it is for: a module that was loaded while nobody watched is unpatched. */
        modules: z.array(
          z.strictObject({
            name: z.string(),
            state: z.enum(['patched', 'pending', 'unpatched', 'unfit']),
            functions: z.array(z.string()),
          }),
        ),
      }),
    ),
    transition: z
      .strictObject({
        patchId: z.string(),
        direction,
        startedAt: z.string().nullable(),
        /** Null without `--explain`. */
        stragglers: z.array(stragglerReport).nullable(),
      })
      .nullable(),
  }),
  z.strictObject({
    ...common,
    event: z.literal('livepatchStatus'),
    patches: z.array(
      z.strictObject({
        name: z.string(),
        enabled: z.boolean(),
        transition: direction.nullable(),
        functions: z.array(z.strictObject({ object: z.string(), name: z.string(), sympos: z.int() })),
        stragglers: z.array(
          z.strictObject({
            tid: z.int(),
            name: z.string(),
            stack: z.array(z.string()),
            function: z.string().nullable(),
          }),
        ),
      }),
    ),
  }),
  z.strictObject({
    ...common,
    event: z.literal('kernelStack'),
    release: z.string(),
    offset: address,
    cpus: z.int(),
    modules: z.array(z.string()),
    stoppedMs: ms,
    tasks: z.array(
      z.strictObject({
        pid: z.int(),
        name: z.string(),
        kthread: z.boolean(),
        state: z.string(),
        reliable: z.boolean(),
        reason: z.strictObject({ code: z.string(), detail: z.string() }).nullable(),
        frames: z.array(
          z.strictObject({
            index: z.int(),
            address,
            symbol: z.string().nullable(),
            module: z.string(),
            by: z.string(),
            source: z.string().nullable(),
          }),
        ),
      }),
    ),
  }),
  z.strictObject({
    ...common,
    event: z.literal('built'),
    output: z.string(),
    functions: z.array(z.string()),
    newFunctions: z.array(z.string()),
    sizeBytes: z.int(),
  }),
  z.strictObject({
    ...common,
    event: z.literal('inspected'),
    id: z.string(),
    manifest: z.record(z.string(), z.unknown()),
    /** What a running kernel would make of it, with --gdb. */
    kernel: z
      .strictObject({
        release: z.string(),
        functions: z.array(z.strictObject({ name: z.string(), address: z.string() })),
        refusal: z.strictObject({ code: z.string(), message: z.string() }).nullable(),
      })
      .optional(),
  }),
  z.strictObject({
    ...common,
    event: z.literal('validated'),
    file: z.string(),
    buildId: z.string().nullable(),
    proof: z.enum(['kept', 'not-kept', 'not-asked', 'no-build-id', 'no-table']),
    sources: z.array(
      z.strictObject({
        source: z.string(),
        proven: count,
        assumed: count,
        unknown: count,
        disproved: count,
        unclaimed: count,
        unreached: count,
      }),
    ),
    textBytes: count,
    instructions: count,
    suppressed: count,
    findings: z.array(finding),
  }),
  z.strictObject({
    ...common,
    event: z.literal('unreadable'),
    file: z.string(),
    code: z.string(),
    message: z.string(),
    remedy: z.string().nullable(),
  }),
  z.strictObject({
    ...common,
    event: z.literal('validateSummary'),
    files: count,
    unreadable: count,
    errors: count,
    warnings: count,
    notes: count,
    suppressed: count,
    textBytes: count,
    instructions: count,
    durationMs: ms,
  }),
  z.strictObject({
    ...common,
    event: z.literal('error'),
    code: z.string(),
    message: z.string(),
    remedy: z.string().nullable(),
    details: z.record(z.string(), z.union([z.string(), z.number(), z.boolean()])),
  }),
]);

export type JsonLine = z.infer<typeof jsonLineSchema>;
