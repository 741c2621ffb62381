// A color for each socket type of ours, so that links can be told apart at any zoom: light enough for dark themes,
// dark enough for light ones. The host's own types keep those of the theme.

import { app } from "../../scripts/app.js";

const COLORS = {
  FACE_PARAMETERS: "#4da138",
  ANIFACEDIFF_FACE_CAPTURE: "#189e8c",
  ANIFACEDIFF_HEAD: "#9c8a04",
  ANIFACEDIFF_APPEARANCE: "#c959a9",
  ANIFACEDIFF_CROP: "#da7c0e",
  ANIFACEDIFF_POSE_ENCODER: "#1099bd",
  ANIFACEDIFF_POSE: "#4786ee",
  ANIFACEDIFF_REFERENCE_NET: "#dd555d",
  ANIFACEDIFF_REFERENCE: "#a87aee",
};

// Choosing a theme empties the colors of all types that it does not name. Ours then stay.
function keep(colors, type, ours) {
  let color = colors[type] || ours;
  Object.defineProperty(colors, type, {
    get: () => color,
    set: (chosen) => (color = chosen || ours),
    enumerable: true,
    configurable: true,
  });
}

app.registerExtension({
  name: "anifacediff.SocketColors",
  setup() {
    for (const [type, color] of Object.entries(COLORS)) {
      keep(app.canvas.constructor.link_type_colors, type, color); // of links
      keep(app.canvas.default_connection_color_byType, type, color); // of sockets
      // Of sockets in the new node renderer. Themes empty one of the two, which one differs between front-ends.
      for (const { style } of [document.documentElement, document.body])
        style.setProperty(`--color-datatype-${type}`, color);
    }
    app.canvas.setDirty(true, true);
  },
});
