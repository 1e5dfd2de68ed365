/** Of the lines that `--json` prints. Kept apart from the schema, which loads a library that the fast path spares. */
export const SCHEMA_VERSION = 1;
