// What can be dialed, in groups as the node shows them. A row has one target, or one for the left and one for the
// right side of the face (the person's own left). A target writes its value under `plus`; where there is an opposite,
// values below 0 go to `minus`.

const EXPRESSION = { min: 0, max: 1, step: 0.01, rest: 0, unit: "" };

const SIDES = [
  ["(left)", "Left"],
  ["(right)", "Right"],
];

function one(label, plus) {
  return { label, targets: [{ ...EXPRESSION, plus }] };
}

function pair(label, plus) {
  return { label, targets: SIDES.map(([side, ending]) => ({ ...EXPRESSION, side, plus: plus + ending })) };
}

function opposites(label, plus, minus) {
  return { label, targets: [{ ...EXPRESSION, min: -1, plus, minus }] };
}

// Both eyes look the same way, so what is outward for one is inward for the other.
function gaze(label, left, right) {
  const eyes = [left, right];
  return {
    label,
    targets: eyes.map(([plus, minus], i) => ({ ...EXPRESSION, min: -1, side: SIDES[i][0], plus, minus })),
  };
}

// The limits are those of editing.py.
function place(label, plus, min, max, { rest = 0, step = 0.01, unit = "" } = {}) {
  return { label, targets: [{ plus, min, max, rest, step, unit }] };
}

const DEGREES = { step: 0.5, unit: "°" };

export const GROUPS = [
  {
    label: "Head",
    place: true,
    rows: [
      place("Turn", "headYaw", -60, 60, DEGREES),
      place("Nod", "headPitch", -45, 45, DEGREES),
      place("Tilt", "headRoll", -45, 45, DEGREES),
    ],
  },
  {
    label: "Framing",
    place: true,
    closed: true,
    rows: [
      place("Zoom", "zoom", 0.5, 2, { rest: 1, unit: "×" }),
      place("Move sideways", "shiftX", -0.5, 0.5),
      place("Move up", "shiftY", -0.5, 0.5),
    ],
  },
  {
    label: "Gaze",
    rows: [
      gaze("Look sideways", ["eyeLookOutLeft", "eyeLookInLeft"], ["eyeLookInRight", "eyeLookOutRight"]),
      gaze("Look up", ["eyeLookUpLeft", "eyeLookDownLeft"], ["eyeLookUpRight", "eyeLookDownRight"]),
    ],
  },
  {
    label: "Eyes and lids",
    rows: [pair("Close", "eyeBlink"), pair("Open wide", "eyeWide"), pair("Squint", "eyeSquint")],
  },
  {
    label: "Brows",
    rows: [one("Raise inner", "browInnerUp"), pair("Raise outer", "browOuterUp"), pair("Lower", "browDown")],
  },
  {
    label: "Jaw",
    rows: [
      one("Open jaw", "jawOpen"),
      opposites("Jaw sideways", "jawLeft", "jawRight"),
      one("Jaw forward", "jawForward"),
    ],
  },
  {
    label: "Mouth",
    rows: [
      pair("Smile", "mouthSmile"),
      pair("Frown", "mouthFrown"),
      one("Pucker", "mouthPucker"),
      one("Funnel", "mouthFunnel"),
      one("Close lips", "mouthClose"),
      opposites("Mouth sideways", "mouthLeft", "mouthRight"),
      pair("Stretch", "mouthStretch"),
      pair("Dimple", "mouthDimple"),
      pair("Press lips", "mouthPress"),
      pair("Raise upper lip", "mouthUpperUp"),
      pair("Lower lower lip", "mouthLowerDown"),
      one("Roll upper lip", "mouthRollUpper"),
      one("Roll lower lip", "mouthRollLower"),
      one("Shrug upper lip", "mouthShrugUpper"),
      one("Shrug lower lip", "mouthShrugLower"),
      one("Tongue out", "tongueOut"),
    ],
  },
  {
    label: "Cheeks and nose",
    rows: [one("Puff cheeks", "cheekPuff"), pair("Raise cheeks", "cheekSquint"), pair("Sneer", "noseSneer")],
  },
];

const ROWS = GROUPS.flatMap((group) => group.rows);
const TARGETS = ROWS.flatMap((row) => row.targets);
const ORDER = TARGETS.flatMap(({ plus, minus }) => (minus ? [plus, minus] : [plus]));
const RESTS = Object.fromEntries(TARGETS.map(({ plus, rest }) => [plus, rest]));
const PLACES = GROUPS.filter((group) => group.place).flatMap(({ rows }) => rows.map(({ targets: [{ plus }] }) => plus));

// `both` is for the left and the right side.
function preset({ both = {}, ...single }) {
  const values = { ...single };
  for (const [name, value] of Object.entries(both)) values[`${name}Left`] = values[`${name}Right`] = value;
  return values;
}

export const PRESETS = {
  Neutral: preset({}),
  Smile: preset({ both: { mouthSmile: 0.7, cheekSquint: 0.4, eyeSquint: 0.2, mouthDimple: 0.15 } }),
  Laugh: preset({
    jawOpen: 0.35,
    both: { mouthSmile: 0.9, cheekSquint: 0.7, eyeSquint: 0.5, mouthUpperUp: 0.35, browOuterUp: 0.2 },
  }),
  Surprise: preset({ jawOpen: 0.4, browInnerUp: 0.9, mouthFunnel: 0.2, both: { browOuterUp: 0.8, eyeWide: 0.8 } }),
  Sadness: preset({
    browInnerUp: 0.8,
    mouthShrugLower: 0.45,
    both: { mouthFrown: 0.6, eyeSquint: 0.2, eyeBlink: 0.15 },
  }),
  Anger: preset({
    mouthShrugLower: 0.2,
    both: { browDown: 0.9, eyeSquint: 0.4, noseSneer: 0.45, mouthPress: 0.4, mouthFrown: 0.25 },
  }),
  Fear: preset({
    browInnerUp: 0.9,
    jawOpen: 0.15,
    both: { eyeWide: 0.9, browOuterUp: 0.3, mouthStretch: 0.6, mouthLowerDown: 0.3 },
  }),
  Disgust: preset({ both: { noseSneer: 0.9, mouthUpperUp: 0.6, browDown: 0.5, cheekSquint: 0.4, mouthFrown: 0.3 } }),
  Blink: preset({ both: { eyeBlink: 1 } }),
  Wink: preset({ eyeBlinkLeft: 1, cheekSquintLeft: 0.5, mouthSmileLeft: 0.6, mouthSmileRight: 0.25 }),
  Kiss: preset({ mouthPucker: 0.9, both: { eyeBlink: 0.5 } }),
  "Ah (speech)": preset({ jawOpen: 0.5, both: { mouthLowerDown: 0.2 } }),
  "Ee (speech)": preset({ jawOpen: 0.1, both: { mouthStretch: 0.5, mouthSmile: 0.25, mouthLowerDown: 0.3 } }),
  "Oh (speech)": preset({ jawOpen: 0.3, mouthFunnel: 0.7, mouthPucker: 0.2 }),
};

export function read(values, { plus, minus, rest }) {
  return (values[plus] ?? rest) - (values[minus] ?? 0);
}

export function write(values, { plus, minus, rest }, value) {
  const rounded = Math.round(value * 100) / 100;
  delete values[minus];
  delete values[plus];
  if (minus && rounded < 0) values[minus] = -rounded;
  else if (rounded !== rest) values[plus] = rounded;
}

// What a name is when it changes nothing.
export function restOf(name) {
  return RESTS[name] ?? 0;
}

// Always in the same order; names that have no slider stay as they are.
export function ordered(values) {
  const names = Object.keys(values).sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b));
  return Object.fromEntries(names.map((name) => [name, values[name]]));
}

// Whether it is an object of numbers.
export function isValues(held) {
  return held?.constructor === Object && Object.values(held).every(Number.isFinite);
}

export function same(values, others) {
  return JSON.stringify(ordered(values)) === JSON.stringify(ordered(others));
}

// The values without where the head is.
export function expressionOf(values) {
  return Object.fromEntries(Object.entries(values).filter(([name]) => !PLACES.includes(name)));
}

// A preset is an expression: the head stays where it is.
export function withPreset(values, preset) {
  return { ...Object.fromEntries(Object.entries(values).filter(([name]) => PLACES.includes(name))), ...preset };
}

export function isSymmetric(values) {
  return ROWS.every(({ targets: [left, right] }) => !right || read(values, left) === read(values, right));
}

// Give both sides the value that is farther from rest.
export function makeSymmetric(values) {
  for (const { targets } of ROWS.filter((row) => row.targets.length === 2)) {
    const [left, right] = targets.map((target) => read(values, target));
    const stronger = Math.abs(left) >= Math.abs(right) ? left : right;
    for (const target of targets) write(values, target, stronger);
  }
}
