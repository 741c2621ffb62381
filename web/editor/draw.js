// Draws the head into a picture, in software: 9,000 triangles take some ten milliseconds, and no graphics driver stands
// between what is dialed and what Render Normals makes of it. Which triangle a pixel shows is decided as in
// rasterize.py.

import { clamp } from "./head.js";

const SKIN_LIGHT = [-0.38, 0.52, 0.76]; // from the upper left, before the face
const FILL_LIGHT = [0.75, 0.1, 0.65];
const IRIS = 0.0084; // meters from the middle of the pupil
const PUPIL = 0.0036;
const IRIS_COLOR = [78, 106, 128];
const LIP_COLOR = [178, 98, 94];
const BROW_COLOR = [84, 64, 54];
const CHART_UNIT = 1e-4; // decimeters, in which paint.py describes the face
const CHART_HEIGHT = 1.25;
const CHART_DEPTH = 0.5;
const MOUTH_Y = 0.695;

export class Painter {
  constructor(head) {
    this.head = head;
    this.pixels = new Float32Array(head.template.length);
    this.turned = new Float32Array(head.template.length);
    this.normals = new Float32Array(head.template.length);
    this.eyes = eyeOffsets(head);
  }

  // Draw posed vertices into an ImageData; what is beside the head stays transparent.
  // `camera` is [s, tx, ty], `view` a rotation around the middle of the head, `look` "shaded" or "normals".
  draw(image, vertices, camera, view, look) {
    const { width, height } = image;
    this.#turn(vertices, view);
    this.#normals();
    this.#project(camera, width, height);
    this.#rasterize(width, height);
    this.#shade(image.data, look === "normals" ? normalColor : this.#skin.bind(this));
  }

  #turn(vertices, m) {
    const { turned } = this;
    for (let o = 0; o < vertices.length; o += 3) {
      const [x, y, z] = [vertices[o], vertices[o + 1], vertices[o + 2]];
      for (let row = 0; row < 3; row++) turned[o + row] = m[3 * row] * x + m[3 * row + 1] * y + m[3 * row + 2] * z;
    }
  }

  #normals() {
    const { turned: p, normals } = this;
    const { faces } = this.head;
    normals.fill(0);
    for (let f = 0; f < faces.length; f += 3) {
      const [a, b, c] = [3 * faces[f], 3 * faces[f + 1], 3 * faces[f + 2]];
      const [ux, uy, uz] = [p[b] - p[a], p[b + 1] - p[a + 1], p[b + 2] - p[a + 2]];
      const [vx, vy, vz] = [p[c] - p[a], p[c + 1] - p[a + 1], p[c + 2] - p[a + 2]];
      const [x, y, z] = [uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx];
      for (const corner of [a, b, c]) {
        normals[corner] += x;
        normals[corner + 1] += y;
        normals[corner + 2] += z;
      }
    }
    for (let o = 0; o < normals.length; o += 3) {
      const length = length3(normals[o], normals[o + 1], normals[o + 2]);
      for (let i = 0; i < 3; i++) normals[o + i] /= length;
    }
  }

  // To pixels; the square picture is as large as fits, in the middle.
  #project([scale, tx, ty], width, height) {
    const { turned, pixels } = this;
    const half = Math.min(width, height) / 2;
    for (let o = 0; o < turned.length; o += 3) {
      pixels[o] = scale * (turned[o] + tx) * half + width / 2;
      pixels[o + 1] = height / 2 - scale * (turned[o + 1] + ty) * half;
      pixels[o + 2] = -scale * turned[o + 2] * half;
    }
  }

  #rasterize(width, height) {
    if (this.triangle?.length !== width * height) {
      this.triangle = new Int32Array(width * height);
      this.depth = new Float32Array(width * height);
      this.weights = new Float32Array(2 * width * height);
    }
    const { triangle, depth, weights, pixels: p } = this;
    const { faces } = this.head;
    triangle.fill(-1);
    depth.fill(Infinity);
    for (let f = 0; f < faces.length; f += 3) {
      const [a, b, c] = [3 * faces[f], 3 * faces[f + 1], 3 * faces[f + 2]];
      const [x, y, z] = [p[a], p[a + 1], p[a + 2]];
      let [e1x, e1y, e2x, e2y] = [p[b] - x, p[b + 1] - y, p[c] - x, p[c + 1] - y];
      const area = e1x * e2y - e1y * e2x;
      if (Math.abs(area) <= 1e-7) continue;
      const left = Math.max(0, Math.ceil(x + Math.min(0, e1x, e2x) - 0.5));
      const right = Math.min(width - 1, Math.floor(x + Math.max(0, e1x, e2x) - 0.5));
      const top = Math.max(0, Math.ceil(y + Math.min(0, e1y, e2y) - 0.5));
      const bottom = Math.min(height - 1, Math.floor(y + Math.max(0, e1y, e2y) - 0.5));
      const [dz1, dz2] = [p[b + 2] - z, p[c + 2] - z];
      [e1x, e1y, e2x, e2y] = [e1x / area, e1y / area, e2x / area, e2y / area];
      for (let row = top; row <= bottom; row++) {
        const dy = row + 0.5 - y;
        for (let column = left; column <= right; column++) {
          const dx = column + 0.5 - x;
          const second = dx * e2y - dy * e2x;
          const third = e1x * dy - e1y * dx;
          if (second < 0 || third < 0 || second + third > 1) continue;
          const at = row * width + column;
          const near = z + second * dz1 + third * dz2;
          if (near >= depth[at]) continue;
          depth[at] = near;
          triangle[at] = f;
          weights[2 * at] = second;
          weights[2 * at + 1] = third;
        }
      }
    }
  }

  #shade(data, color) {
    const { triangle, weights, normals } = this;
    const { faces } = this.head;
    const normal = [0, 0, 0];
    for (let at = 0; at < triangle.length; at++) {
      const f = triangle[at];
      if (f < 0) {
        data[4 * at + 3] = 0;
        continue;
      }
      const [a, b, c] = [3 * faces[f], 3 * faces[f + 1], 3 * faces[f + 2]];
      const [second, third] = [weights[2 * at], weights[2 * at + 1]];
      const first = 1 - second - third;
      for (let i = 0; i < 3; i++) normal[i] = first * normals[a + i] + second * normals[b + i] + third * normals[c + i];
      const length = length3(normal[0], normal[1], normal[2]);
      for (let i = 0; i < 3; i++) normal[i] /= length;
      color(data, 4 * at, normal, a, b, c, first, second, third);
      data[4 * at + 3] = 255;
    }
  }

  #skin(data, at, normal, a, b, c, first, second, third) {
    const { color, chart } = this.head;
    const light = 0.3 + 0.72 * facing(normal, SKIN_LIGHT) + 0.2 * facing(normal, FILL_LIGHT);
    const grazing = 1 - Math.abs(normal[2]);
    const edge = grazing * grazing * grazing * 38;
    const across = Math.abs(first * chart[a] + second * chart[b] + third * chart[c]) * CHART_UNIT;
    const up = (first * chart[a + 1] + second * chart[b + 1] + third * chart[c + 1]) * CHART_UNIT + CHART_HEIGHT;
    const out = (first * chart[a + 2] + second * chart[b + 2] + third * chart[c + 2]) * CHART_UNIT + CHART_DEPTH;
    const lips = lipMask(across, up, out) * 0.8;
    const brows = browMask(across, up, out) * 0.85;
    for (let i = 0; i < 3; i++) {
      const skin = first * color[a + i] + second * color[b + i] + third * color[c + i];
      const painted = skin + lips * (LIP_COLOR[i] - skin) + brows * (BROW_COLOR[i] - skin);
      data[at + i] = painted * light + edge;
    }
    const { eyes } = this;
    const x = first * eyes[a] + second * eyes[b] + third * eyes[c];
    const y = first * eyes[a + 1] + second * eyes[b + 1] + third * eyes[c + 1];
    const distance = Math.sqrt(x * x + y * y); // not a number on the skin
    if (distance < IRIS) this.#iris(data, at, distance, light);
  }

  #iris(data, at, distance, light) {
    const rim = 0.55 + 0.45 * Math.min(1, (IRIS - distance) / 0.0012);
    for (let i = 0; i < 3; i++) data[at + i] = distance < PUPIL ? 18 : IRIS_COLOR[i] * light * rim;
  }
}

// As paint.py's lip_mask and _brows, with an average brow.
function lipMask(x, y, z) {
  const arch = 1 - (x / 0.235) ** 2;
  if (arch <= 0 || z < 1.24 || Math.abs(y - MOUTH_Y) > 0.15) return 0;
  const top = MOUTH_Y + 0.086 * arch ** 0.75 - 0.016 * Math.exp(-((x / 0.04) ** 2));
  const bottom = MOUTH_Y - 0.122 * arch ** 0.6;
  const inside = smoothstep(y, bottom - 0.014, bottom + 0.014) * smoothstep(y, top + 0.014, top - 0.014);
  return inside * smoothstep(arch, 0, 0.06) * smoothstep(z, 1.24, 1.31);
}

function browMask(x, y, z) {
  const along = (x - 0.115) / 0.4;
  if (along < -0.05 || along > 1.04 || y < 1.5 || y > 1.8) return 0;
  const inside = clamp(along, 0, 1);
  const middle = 1.6 + 0.06 * Math.sin(inside * 2.6) - 0.04 * (along - 0.5);
  const half = 0.036 * (1.05 - 0.72 * inside ** 1.6) * (0.7 + 0.3 * smoothstep(along, -0.06, 0.12));
  const ends = smoothstep(along, -0.05, 0.05) * smoothstep(along, 1.04, 0.96);
  return smoothstep(Math.abs(y - middle), half * 1.15, half * 0.8) * ends * smoothstep(z, 0.9, 1.15);
}

function smoothstep(value, low, high) {
  const t = clamp((value - low) / (high - low), 0, 1);
  return t * t * (3 - 2 * t);
}

function normalColor(data, at, normal) {
  for (let i = 0; i < 3; i++) data[at + i] = (normal[i] * 0.5 + 0.5) * 255;
}

// Math.hypot is many times slower.
function length3(x, y, z) {
  return Math.sqrt(x * x + y * y + z * z) || 1;
}

function facing(normal, light) {
  return Math.max(0, normal[0] * light[0] + normal[1] * light[1] + normal[2] * light[2]);
}

// How far the front of an eyeball is from where it looks, in x and y; NaN on all other vertices.
function eyeOffsets({ template, weights, joints }) {
  const offsets = new Float32Array(template.length).fill(NaN);
  const count = joints.length / 3;
  for (let v = 0; v < template.length / 3; v++)
    for (const eye of [3, 4])
      if (weights[v * count + eye] && template[3 * v + 2] > joints[3 * eye + 2])
        for (let i = 0; i < 2; i++) offsets[3 * v + i] = template[3 * v + i] - joints[3 * eye + i];
  return offsets;
}
