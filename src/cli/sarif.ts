import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { SourceLine } from '../dwarf/line-section.js';
import {
  FINDING_CODES,
  type Finding,
  type FindingPlace,
  REMEDIES,
  type SuppressedFinding,
} from '../validate/findings.js';
import { describePlace } from '../validate/places.js';
import { VERSION } from './conventions.js';
import type { FileReport } from './validate-files.js';

/** A SARIF 2.1.0 log (OASIS, "Static Analysis Results Interchange Format") of one run. */
export function toSarif(reports: readonly FileReport[]): unknown {
  const codes = Object.keys(FINDING_CODES) as (keyof typeof FINDING_CODES)[];
  const resultOf = (file: string, finding: Finding) => toResult(file, finding, codes.indexOf(finding.code));
  return {
    $schema: 'https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json',
    version: '2.1.0',
    runs: [
      {
        tool: {
          driver: {
            name: 'livegraft validate',
            version: VERSION,
            rules: codes.map((code) => ({
              id: code,
              defaultConfiguration: { level: FINDING_CODES[code] },
              help: { text: REMEDIES[code] },
            })),
          },
        },
        invocations: [
          {
            executionSuccessful: reports.every((report) => report.kind === 'validated'),
            toolExecutionNotifications: reports.flatMap((report) =>
              report.kind === 'unreadable'
                ? [
                    {
                      level: 'error',
                      message: { text: report.message },
                      locations: [{ physicalLocation: artifact(report.file) }],
                    },
                  ]
                : [],
            ),
          },
        ],
        results: reports.flatMap((report) =>
          report.kind === 'validated'
            ? [
                ...report.findings.map((finding) => resultOf(report.file, finding)),
                ...report.suppressed.map((each) => ({
                  ...resultOf(report.file, each.finding),
                  suppressions: [toSuppression(each)],
                })),
              ]
            : [],
        ),
      },
    ],
  };
}

function artifact(file: string) {
  return { artifactLocation: { uri: pathToFileURL(resolve(file)).href } };
}

/** In the source, where line tables tell; else the instruction in the file (SARIF 3.29, 3.32). */
function locationOf(file: string, place: FindingPlace | undefined) {
  const line = place?.line;
  return {
    physicalLocation: {
      ...(line === undefined ? artifact(file) : sourceArtifact(line)),
      ...(place !== undefined &&
        place.address >= 0 && { address: { absoluteAddress: place.address, kind: 'instruction' } }),
    },
    ...(place !== undefined && {
      logicalLocations: [
        {
          name: describePlace(place),
          kind: 'function',
          fullyQualifiedName: place.function ?? place.section,
        },
      ],
    }),
  };
}

/** A relative path stays one: it counts from where the compiler ran. */
function sourceArtifact({ file, line, column }: SourceLine) {
  const uri = file.startsWith('/')
    ? pathToFileURL(file).href
    : file.split('/').map(encodeURIComponent).join('/');
  return {
    artifactLocation: { uri },
    region: { startLine: line, ...(column > 0 && { startColumn: column }) },
  };
}

/** Such a result is in the log, so that a viewer can show it, and is no problem (SARIF 3.27.23, 3.35). */
function toSuppression({ kind, why }: SuppressedFinding) {
  return { kind, ...(why !== undefined && { justification: why }) };
}

function toResult(file: string, finding: Finding, ruleIndex: number) {
  const { code, level, message, claimed, derived, place, from, source, repeats } = finding;
  const details = [
    message,
    claimed === undefined ? '' : `claimed: ${claimed}`,
    derived === undefined ? '' : `derived: ${derived}`,
    from === undefined ? '' : `reached from ${describePlace(from)}`,
  ];
  return {
    ruleId: code,
    ruleIndex,
    level,
    message: { text: details.filter((line) => line !== '').join('; ') },
    analysisTarget: artifact(file).artifactLocation,
    locations: [locationOf(file, place)],
    ...(from !== undefined && {
      relatedLocations: [{ ...locationOf(file, from), message: { text: 'control comes from here' } }],
    }),
    partialFingerprints: {
      place: `${code}/${place === undefined ? '' : describePlace(place)}/${source ?? ''}`,
    },
    occurrenceCount: repeats + 1,
  };
}
