// What the node shows: a camera or a video file to choose, the result, and buttons. Frames are sent one by one, and the
// answer to each is the newest picture.

import { ask, post, statusOf } from "../session.js";

const FILE = "file";
const LONGEST_SIDE = 640; // of what is sent: faces are read at less
const QUALITY = 0.85;
const AT_ONCE = 2; // one frame is on its way while another is drawn
const PAUSE = 50; // milliseconds, when there is nothing to send or the host is busy

const STYLE = {
  panel: "display:flex;flex-direction:column;gap:6px;height:100%;box-sizing:border-box;font:12px/1.3 Inter,system-ui,sans-serif;color:var(--input-text,#ddd)",
  view: "position:relative;flex:1;min-height:160px;background:#0004;border-radius:8px;overflow:hidden",
  result: "width:100%;height:100%;object-fit:contain;display:block",
  own: "position:absolute;right:6px;bottom:6px;width:25%;border-radius:4px",
  row: "display:flex;gap:6px",
  control: "flex:1;min-width:0;padding:5px 8px;border-radius:6px;border:1px solid color-mix(in srgb,var(--input-text,#ddd) 30%,transparent);background:var(--comfy-input-bg,#222);color:inherit;font:inherit",
  line: "min-height:2.6em",
};

function make(tag, style, properties = {}) {
  return Object.assign(document.createElement(tag), { style: STYLE[style] }, properties);
}

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export class LivePanel {
  #token = null;
  #wanted = false; // Start was pressed, and the run has not come to this node yet
  #shown = 0;
  #sent = -1; // moment of the video that was sent last
  #recording = false;

  // `t` translates, `queue` runs the workflow.
  constructor({ t, queue }) {
    Object.assign(this, { t, queue });
    this.video = make("video", "own", { muted: true, playsInline: true, loop: true });
    this.result = make("img", "result", { alt: t("The reenacted picture") });
    this.choice = make("select", "control", { ariaLabel: t("Camera or file"), onchange: () => this.#chosen() });
    this.file = make("input", "control", { type: "file", accept: "video/*", ariaLabel: t("Video file"), hidden: true });
    this.start = make("button", "control", { type: "button", onclick: () => this.#toggle() });
    this.neutral = this.#button("Neutral", () => this.#ask("neutral"));
    this.neutral.title = t("From now on motion counts from how you look now");
    this.record = this.#button("Record", () => this.#ask(this.#recording ? "pause" : "record"));
    this.line = make("div", "line");
    this.line.setAttribute("role", "status");
    this.element = make("div", "panel", { className: "afd-live" });
    const view = make("div", "view");
    const [choosing, buttons] = [make("div", "row"), make("div", "row")];
    view.append(this.result, this.video);
    choosing.append(this.choice, this.file);
    buttons.append(this.start, this.neutral, this.record);
    this.element.append(view, choosing, buttons, this.line);
    for (const event of ["pointerdown", "keydown"]) this.element.addEventListener(event, (e) => e.stopPropagation());
    this.#list([]);
    this.#draw();
  }

  // The run has come to this node: frames are awaited.
  async begin(token) {
    this.#token = token;
    this.#wanted = false;
    [this.#shown, this.#sent, this.#recording] = [0, -1, false];
    this.#draw();
    if (!(await this.#open())) return this.#ask("stop");
    this.line.textContent = "";
    for (let count = 0; count < AT_ONCE; count++) this.#sendFrames(token);
  }

  // The session is over, whoever ended it.
  end() {
    this.#token = null;
    this.#recording = this.#wanted = false;
    this.#close();
    this.#draw();
  }

  stop() {
    if (this.#token) this.#ask("stop");
    this.end();
  }

  async #toggle() {
    if (this.#token || this.#wanted) return this.stop();
    if (!(await this.#open())) return;
    this.#wanted = true;
    this.line.textContent = this.t("Waiting until the run comes to this node …");
    this.#draw();
    await this.queue();
  }

  #button(word, onclick) {
    return make("button", "control", { type: "button", textContent: this.t(word), onclick });
  }

  #draw() {
    this.start.textContent = this.t(this.#token || this.#wanted ? "Stop" : "Start");
    this.record.textContent = this.t(this.#recording ? "End recording" : "Record");
    this.record.ariaPressed = String(this.#recording);
    this.neutral.disabled = this.record.disabled = !this.#token;
    this.line.ariaLive = this.#token ? "off" : "polite"; // figures that change all the time are not read out
    this.choice.disabled = this.file.disabled = Boolean(this.#token || this.#wanted);
  }

  #list(cameras) {
    const before = this.choice.value;
    const option = (value, text) => new Option(text, value);
    const named = cameras.filter((camera) => camera.deviceId);
    const known = named.map((camera, n) => option(camera.deviceId, camera.label || `${this.t("Camera")} ${n + 1}`));
    this.choice.replaceChildren(...(known.length ? known : [option("", this.t("Camera"))]), option(FILE, this.t("Video file")));
    if ([...this.choice.options].some(({ value }) => value === before)) this.choice.value = before;
  }

  #chosen() {
    this.file.hidden = this.choice.value !== FILE;
  }

  // Let the video show what is chosen; tells why, if it cannot.
  async #open() {
    if (this.video.src || this.video.srcObject) return true;
    try {
      if (this.choice.value === FILE) {
        const [file] = this.file.files;
        if (!file) return this.#say("Choose a video file first.");
        this.video.src = URL.createObjectURL(file);
      } else {
        if (!navigator.mediaDevices) return this.#say("Browsers give cameras to pages of https or localhost only.");
        const deviceId = this.choice.value ? { exact: this.choice.value } : undefined;
        this.video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { deviceId } });
        this.#list((await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "videoinput"));
      }
      await this.video.play();
      return true;
    } catch (error) {
      this.#close();
      return this.#say("It cannot be opened:", ` ${error.message}`);
    }
  }

  #say(words, more = "") {
    this.line.textContent = this.t(words) + more;
    return false;
  }

  #close() {
    for (const track of this.video.srcObject?.getTracks() ?? []) track.stop();
    if (this.video.src) URL.revokeObjectURL(this.video.src);
    this.video.pause();
    this.video.srcObject = null;
    this.video.removeAttribute("src");
  }

  async #sendFrames(token) {
    while (this.#token === token) {
      const body = await this.#grab();
      if (!body) {
        await wait(PAUSE);
        continue;
      }
      const response = await post(token, body);
      if (this.#token !== token) return;
      if (response?.status === 429 || response?.status === 204) await wait(PAUSE);
      else if (response?.ok) this.#show(await response.blob(), statusOf(response));
      else return this.end();
    }
  }

  // The video's frame as a JPEG; null if it is the one that was sent last.
  #grab() {
    const { videoWidth: width, videoHeight: height, currentTime } = this.video;
    if (!width || currentTime === this.#sent) return null;
    this.#sent = currentTime;
    const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
    canvas.getContext("2d").drawImage(this.video, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
  }

  #show(picture, status) {
    const { number, recording } = status;
    if (number <= this.#shown) return;
    this.#shown = number;
    URL.revokeObjectURL(this.result.src);
    this.result.src = URL.createObjectURL(picture);
    this.line.textContent = this.#describe(status);
    if (recording === this.#recording) return;
    this.#recording = recording;
    this.#draw();
  }

  // `latency` in seconds.
  #describe({ fps, latency, dropped, recorded, most, lost }) {
    const { t } = this;
    const figures = [`${fps.toFixed(1)} FPS`, `${Math.round(1000 * latency)} ms`, `${t("dropped")}: ${dropped}`];
    return [...(lost ? [t("No face")] : []), ...figures, `${t("recorded")}: ${recorded}/${most}`].join(" · ");
  }

  #ask(action) {
    return ask(this.#token, action);
  }
}
