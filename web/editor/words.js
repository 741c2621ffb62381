// The panel's words in the front-end's language.

const WORDS = { };

// A function from English words to those of a locale such as "ja" or "zh-TW"; what it doesn't know stays English.
export function translator(locale = "en") {
  const words = WORDS[locale] ?? {};
  return (text) => words[text] ?? text;
}
