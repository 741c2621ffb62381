// Expressions that the user has saved by a name of their own. They lie in the host's folder of the user, as one file.

import { api } from "../../../scripts/api.js";
import { isValues } from "./sliders.js";

const FILE = "anifacediff_presets.json";
const MISSING = 404;

let presets; // a promise of values by name, for all panels
const listeners = new Set();

export function saved() {
  presets ??= load().catch((error) => {
    presets = undefined;
    throw error;
  });
  return presets;
}

// Save values by a name, or forget the name where there are none.
export async function save(name, values) {
  const known = { ...(await load()) }; // another page may have saved some meanwhile
  if (values) known[name] = values;
  else delete known[name];
  await api.storeUserData(FILE, known);
  presets = Promise.resolve(known);
  for (const listener of listeners) listener();
}

// Have something done whenever there are others; what it gives ends that.
export function onSaved(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

async function load() {
  const response = await api.getUserData(FILE);
  if (response.status === MISSING) return {};
  if (!response.ok) throw new Error(`${FILE}: ${response.status}`);
  const held = await response.json();
  return Object.fromEntries(Object.entries(held).filter(([, values]) => isValues(values)));
}
