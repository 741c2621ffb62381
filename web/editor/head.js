// The bundled head in the browser: the same formulas as HeadModel and editing.py, checked against them by the tests.
// Matrices are arrays of 9 numbers, row by row.

const ARRAYS = { F32: Float32Array, I32: Int32Array, I16: Int16Array, U8: Uint8Array };
const RADIANS = Math.PI / 180;
const GAZE_YAW = 0.5; // radians at 1, as in motion.py
const GAZE_PITCH = 0.38;
const NEUTRAL_CAMERA = [6, 0, 0];

export class Head {
  static async load(url) {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url}: ${response.status}`);
    return new Head(await response.arrayBuffer());
  }

  constructor(buffer) {
    const start = 8 + new DataView(buffer).getUint32(0, true); // a header never has 4 GB
    const header = new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8));
    const { __metadata__: metadata, ...entries } = JSON.parse(header);
    for (const [name, { dtype, data_offsets: [from, to] }] of Object.entries(entries)) {
      const Type = ARRAYS[dtype];
      this[name] = new Type(buffer, start + from, (to - from) / Type.BYTES_PER_ELEMENT);
    }
    Object.assign(this, JSON.parse(metadata.head)); // expressions, parents
    this.rest = new Float32Array(this.template.length);
    this.vertices = new Float32Array(this.template.length);
  }

  // Where the edits lead: expression, a rotation per joint, and the camera. `base` is a frame of face parameters,
  // or null for the neutral head.
  edit(edits, base) {
    const rest = base?.expression ?? new Array(this.expressions.length).fill(0);
    const expression = this.expressions.map((name, i) => clamp(rest[i] + (edits[name] ?? 0), 0, 1));
    const pose = [...(base?.pose ?? new Array(15).fill(0))];
    const [before, after] = [this.gaze(rest), this.gaze(expression)];
    for (let i = 0; i < 6; i++) pose[9 + i] += after[i] - before[i];
    const rotations = this.parents.map((_, joint) => rotation(pose.slice(3 * joint, 3 * joint + 3)));
    rotations[1] = multiply(rotations[1], fromEuler(edits.headYaw ?? 0, edits.headPitch ?? 0, edits.headRoll ?? 0));
    const [scale, x, y] = base?.camera ?? NEUTRAL_CAMERA;
    const zoomed = scale * (edits.zoom ?? 1);
    const camera = [zoomed, x + (2 * (edits.shiftX ?? 0)) / zoomed, y + (2 * (edits.shiftY ?? 0)) / zoomed];
    return { expression, rotations, camera };
  }

  // Axis-angle of both eyes, from the eyeLook values.
  gaze(expression) {
    const value = (name) => expression[this.expressions.indexOf(name)];
    const eye = (side, outward) => [
      GAZE_PITCH * (value(`eyeLookDown${side}`) - value(`eyeLookUp${side}`)),
      outward * GAZE_YAW * (value(`eyeLookOut${side}`) - value(`eyeLookIn${side}`)),
      0,
    ];
    return [...eye("Left", 1), ...eye("Right", -1)];
  }

  // Posed vertices, x y z in meters; the array is used again by the next call.
  pose({ expression, rotations }) {
    const { template, rest, vertices, weights } = this;
    rest.set(template);
    expression.forEach((value, i) => value && this.#add(i, value));
    const transforms = this.#transforms(rotations);
    const joints = transforms.length;
    const m = new Float64Array(12);
    for (let v = 0, o = 0, w = 0; v < rest.length / 3; v++, o += 3, w += joints) {
      m.fill(0);
      for (let joint = 0; joint < joints; joint++) {
        const weight = weights[w + joint];
        if (weight) for (let i = 0; i < 12; i++) m[i] += weight * transforms[joint][i];
      }
      const [x, y, z] = [rest[o], rest[o + 1], rest[o + 2]];
      for (let row = 0; row < 3; row++)
        vertices[o + row] = m[3 * row] * x + m[3 * row + 1] * y + m[3 * row + 2] * z + m[9 + row];
    }
    return vertices;
  }

  #add(expression, value) {
    const { rest, delta, delta_vertex: vertex, delta_start: start } = this;
    const scale = value * this.delta_unit[expression];
    for (let i = start[expression]; i < start[expression + 1]; i++) {
      const at = 3 * vertex[i];
      rest[at] += scale * delta[3 * i];
      rest[at + 1] += scale * delta[3 * i + 1];
      rest[at + 2] += scale * delta[3 * i + 2];
    }
  }

  // Per joint the map of unposed to posed points: a rotation, then a translation.
  #transforms(rotations) {
    const transforms = [];
    rotations.forEach((local, joint) => {
      const pivot = this.joints.subarray(3 * joint, 3 * joint + 3);
      let turn = local;
      let shift = apply(local, pivot).map((value, i) => pivot[i] - value);
      const parent = transforms[this.parents[joint]];
      if (parent) {
        shift = apply(parent, shift).map((value, i) => value + parent[9 + i]);
        turn = multiply(parent, local);
      }
      transforms.push([...turn, ...shift]);
    });
    return transforms;
  }
}

export function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

// Axis-angle in radians to a matrix.
export function rotation([x, y, z]) {
  const squared = x * x + y * y + z * z;
  const angle = Math.sqrt(squared);
  const first = angle < 1e-4 ? 1 : Math.sin(angle) / angle;
  const second = angle < 1e-4 ? 0.5 : (1 - Math.cos(angle)) / squared;
  return [
    1 - second * (y * y + z * z), second * x * y - first * z, second * x * z + first * y,
    second * x * y + first * z, 1 - second * (x * x + z * z), second * y * z - first * x,
    second * x * z - first * y, second * y * z + first * x, 1 - second * (x * x + y * y),
  ];
}

// Degrees to a matrix: R_y(yaw) R_x(pitch) R_z(roll).
export function fromEuler(yaw, pitch, roll) {
  const turn = rotation([0, yaw * RADIANS, 0]);
  const nod = rotation([pitch * RADIANS, 0, 0]);
  return multiply(multiply(turn, nod), rotation([0, 0, roll * RADIANS]));
}

export function multiply(a, b) {
  const product = [];
  for (let row = 0; row < 9; row += 3)
    for (let column = 0; column < 3; column++)
      product.push(a[row] * b[column] + a[row + 1] * b[column + 3] + a[row + 2] * b[column + 6]);
  return product;
}

function apply(m, [x, y, z]) {
  return [0, 3, 6].map((row) => m[row] * x + m[row + 1] * y + m[row + 2] * z);
}
