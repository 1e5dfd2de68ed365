// The small build: every command that reads a patch loads it.
import * as z from 'zod/mini';

/** What a patch file says about itself. Addresses are link addresses in `0x…` text. Version 1. */
export const MANIFEST_VERSION = 1;

const address = z.string().check(z.regex(/^0x[0-9a-f]{1,16}$/));
const sha256 = z.string().check(z.regex(/^[0-9a-f]{64}$/));

const rangeSchema = z.strictObject({
  name: z.string(),
  address,
  sizeBytes: z.int().check(z.positive()),
  /** Of the bytes in the file that the patch was made for. */
  sha256,
});

/**
 * Of a module's function that was compiled without the nop of ftrace, and whose first instructions may be overwritten by a jump: where
 * they begin in it, their bytes in the module's file, and which of these (offsets of 4 bytes) the kernel fills in as it loads the module.
 */
const displacedSchema = z.strictObject({
  offset: z.int().check(z.nonnegative()),
  bytes: z.string().check(z.regex(/^([0-9a-f]{2}){5,32}$/)),
  relocated: z.array(z.int().check(z.nonnegative())),
});

const functionSchema = z.strictObject({
  name: z.string(),
  sympos: z.int().check(z.nonnegative()),
  old: rangeSchema,
  /** Parts that the compiler split from it: `f.cold` and the like. */
  parts: z.array(rangeSchema),
  displaced: z.optional(displacedSchema),
  /** The symbol of the new version in this file, and of its own split parts. */
  newSymbol: z.string(),
  newParts: z.array(z.string()),
});

const symbolSchema = z.strictObject({
  name: z.string(),
  sympos: z.int().check(z.nonnegative()),
  kind: z.enum(['func', 'object', 'tls']),
  address,
});

const symbolName = z.string().check(z.minLength(1));

/** Functions of the patch, by their names in the file, that run when the object is changed; see engine/callbacks.ts. */
const callbacksSchema = z.strictObject({
  prePatch: z.optional(symbolName),
  postPatch: z.optional(symbolName),
  preUnpatch: z.optional(symbolName),
  postUnpatch: z.optional(symbolName),
});

/** A change of the program's state that the patch makes beyond its code, as struct klp_state: see engine/states.ts. */
const stateSchema = z.strictObject({
  id: z.int().check(z.nonnegative()),
  version: z.int().check(z.nonnegative()),
  /** The variable of the patch that describes it (struct livegraft_state). */
  symbol: symbolName,
});

const objectSchema = z.strictObject({
  /** Last component of the file's path, or the SONAME of a library. */
  name: z.string().check(z.minLength(1)),
  identity: z.discriminatedUnion('kind', [
    z.strictObject({ kind: z.literal('buildId'), hex: z.string().check(z.regex(/^([0-9a-f]{2})+$/)) }),
    /** For a file without a build-id: SHA-256 over its executable segments. */
    z.strictObject({ kind: z.literal('textHash'), sha256 }),
  ]),
  /** Of a kernel none, when only functions of its modules are replaced. */
  functions: z.array(functionSchema),
  /** What the new code refers to in the object, resolved when the patch was built. */
  symbols: z.array(symbolSchema),
  callbacks: z.optional(callbacksSchema),
});

export const manifestSchema = z.strictObject({
  formatVersion: z.literal(MANIFEST_VERSION),
  name: z.string().check(z.minLength(1)),
  description: z.string(),
  createdAt: z.string(),
  tool: z.string(),
  architecture: z.literal('x86-64'),
  objects: z
    .array(objectSchema)
    .check(
      z.refine((objects) => objects.some((object) => object.functions.length > 0), 'it replaces no function'),
    ),
  /** Cumulative: whatever older patches a process has go in the transition that brings this one. */
  replace: z.optional(z.boolean()),
  /** A function of the object that no thread calls while it is in a function of the patch: the barrier. */
  barrier: z.optional(z.string().check(z.minLength(1))),
  states: z.optional(z.array(stateSchema)),
  newFunctions: z.array(z.string()),
  newData: z.array(z.strictObject({ name: z.string(), sizeBytes: z.int().check(z.nonnegative()) })),
  /** What the builder compared and saw: for people. */
  notes: z.array(z.string()),
});

export type PatchManifest = z.infer<typeof manifestSchema>;
/** What whoever builds a patch declares of how it is applied to a process. */
export type PatchDeclarations = Pick<PatchManifest, 'replace' | 'barrier'>;
export type PatchObject = z.infer<typeof objectSchema>;
export type PatchCallbacks = z.infer<typeof callbacksSchema>;
export type PatchSystemState = z.infer<typeof stateSchema>;
export type PatchFunction = z.infer<typeof functionSchema>;
export type DisplacedEntry = z.infer<typeof displacedSchema>;
export type PatchSymbolAddress = z.infer<typeof symbolSchema>;
