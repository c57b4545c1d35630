// Masks: strokes on a canvas, kept as a list so that undo takes back exactly one.
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { imageOf, remember, upload } from "./api.js";
import { Button, FileButton, Picture } from "./controls.js";
import { set, size, state } from "./state.js";
import { t } from "./words.js";

export const HUES = 8;
const LONG_SIDE = 512; // px of a mask; the server scales it to the picture

/** Width and height of a mask for the form's pictures. */
function maskSize() {
  const [width, height] = size();
  const scale = LONG_SIDE / Math.max(width, height);
  return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
}

const canvasOf = (width, height) =>
  Object.assign(document.createElement("canvas"), { width, height });

/** A picture with white inside becomes a canvas that is opaque inside. */
function opaqueInside(image, width, height) {
  const canvas = canvasOf(width, height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const [red, green, blue, alpha] = pixels.data.subarray(at, at + 4);
    const light = (0.299 * red + 0.587 * green + 0.114 * blue) * (alpha / 255);
    pixels.data.set([255, 255, 255, light], at);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

const kept = new Map(); // hash -> promise of an opaque-inside canvas

function maskCanvas(hash) {
  if (!kept.has(hash)) {
    const found = imageOf(`uploads/${hash}`).then((image) =>
      opaqueInside(image, image.naturalWidth, image.naturalHeight),
    );
    found.catch(() => kept.delete(hash));
    kept.set(hash, found);
  }
  return kept.get(hash);
}

function tint(context, colour) {
  context.globalCompositeOperation = "source-in";
  context.fillStyle = colour;
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
  context.globalCompositeOperation = "source-over";
}

const colourOf = (element) => getComputedStyle(element).color;

/** A mask in the colour of its reference. */
export function MaskView({ hash, hue }) {
  const canvas = useRef();
  useEffect(() => {
    let current = true;
    maskCanvas(hash).then(
      (mask) => {
        if (!current || !canvas.current) return;
        const { width, height } = Object.assign(canvas.current, {
          width: mask.width,
          height: mask.height,
        });
        const context = canvas.current.getContext("2d");
        context.clearRect(0, 0, width, height);
        context.drawImage(mask, 0, 0);
        tint(context, colourOf(canvas.current));
      },
      () => {},
    );
    return () => (current = false);
  }, [hash, hue]);
  return html`<canvas ref=${canvas} class=${`mask hue-${hue}`} aria-hidden="true" />`;
}

// ── painting ───────────────────────────────────────────────────────────────────────────────────

const HALVES = {
  left: [0, 0, 0.5, 1],
  right: [0.5, 0, 0.5, 1],
  top: [0, 0, 1, 0.5],
  bottom: [0, 0.5, 1, 0.5],
  whole: [0, 0, 1, 1],
};

function draw(context, operation) {
  const { width, height } = context.canvas;
  context.globalCompositeOperation = operation.erase ? "destination-out" : "source-over";
  context.fillStyle = context.strokeStyle = "#fff";
  if (operation.box) {
    const [x, y, w, h] = operation.box;
    context.fillRect(x * width, y * height, w * width, h * height);
  } else if (operation.image) {
    context.drawImage(operation.image, 0, 0, width, height);
  } else if (operation.clear) {
    context.clearRect(0, 0, width, height);
  } else if (operation.invert) {
    context.globalCompositeOperation = "xor";
    context.fillRect(0, 0, width, height);
  } else {
    context.lineWidth = operation.width;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    const [first, ...others] = operation.points;
    context.moveTo(...first);
    context.lineTo(first[0] + 0.01, first[1]);
    for (const point of others) context.lineTo(...point);
    context.stroke();
  }
  context.globalCompositeOperation = "source-over";
}

function drawn(operations, width, height) {
  const canvas = canvasOf(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  operations.forEach((operation) => draw(context, operation));
  return canvas;
}

/** Whether anything is inside: an empty mask is no mask. */
const isEmpty = (canvas) =>
  !canvas
    .getContext("2d")
    .getImageData(0, 0, canvas.width, canvas.height)
    .data.some((value, at) => at % 4 === 3 && value > 0);

async function keep(operations, width, height) {
  const inside = drawn(operations, width, height);
  if (isEmpty(inside)) return "";
  const canvas = canvasOf(width, height);
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, width, height);
  context.drawImage(inside, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  const { hash } = await upload(blob);
  remember(hash, blob);
  return hash;
}

/** The frame of the picture to paint over. `state.paint` says for what and what to do then. */
export function Painter() {
  const { hash, hue, title, over, onDone } = state.paint;
  const canvas = useRef();
  const stroke = useRef(null);
  const [width, height] = maskSize();
  const [operations, setOperations] = useState([]);
  const [undone, setUndone] = useState([]);
  const [erase, setErase] = useState(false);
  const [brush, setBrush] = useState(64);
  const [busy, setBusy] = useState(false);

  const add = (operation) => {
    setOperations((before) => [...before, operation]);
    setUndone([]);
  };
  const undo = () => operations.length && move(operations, setOperations, setUndone);
  const redo = () => undone.length && move(undone, setUndone, setOperations);
  const move = (from, setFrom, setTo) => {
    setTo((before) => [...before, from.at(-1)]);
    setFrom(from.slice(0, -1));
  };
  const load = async (blob) => {
    const bitmap = await createImageBitmap(blob);
    add({ image: opaqueInside(bitmap, width, height) });
  };

  useEffect(() => {
    if (hash)
      maskCanvas(hash).then(
        (image) => setOperations((now) => [{ image }, ...now]),
        () => {},
      );
  }, []);

  const show = (more = []) => {
    const context = canvas.current.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.drawImage(drawn([...operations, ...more], width, height), 0, 0);
    tint(context, colourOf(canvas.current));
  };
  useEffect(() => show(), [operations, width, height]);

  const at = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [
      ((event.clientX - box.left) * width) / box.width,
      ((event.clientY - box.top) * height) / box.height,
    ];
  };
  const begin = (event) => {
    if (event.button) return;
    canvas.current.setPointerCapture(event.pointerId); // strokes may leave the frame and return
    stroke.current = { erase, width: brush, points: [at(event)] };
    show([stroke.current]);
  };
  const go = (event) => {
    if (!stroke.current) return;
    for (const part of event.getCoalescedEvents?.() || [event])
      stroke.current.points.push(at(part));
    show([stroke.current]);
  };
  const end = () => {
    if (stroke.current) add(stroke.current);
    stroke.current = null;
  };
  const keys = (event) => {
    const command = event.ctrlKey || event.metaKey;
    if (command && event.key.toLowerCase() === "z") {
      event.preventDefault();
      event.shiftKey ? redo() : undo();
    } else if (event.key === "[" || event.key === "]") {
      setBrush((now) => Math.min(256, Math.max(4, now + (event.key === "[" ? -12 : 12))));
    } else if (event.key === "e" && event.target.tagName !== "INPUT") setErase(!erase);
  };
  const close = () => set({ view: "picture", paint: null });
  const done = async () => {
    setBusy(true);
    try {
      onDone(await keep(operations, width, height));
      close();
    } catch (error) {
      setBusy(false);
      set({ toast: { text: error.message || t("offline") } });
    }
  };
  const tools = html`<div class="tools" role="toolbar" aria-label=${t("painting")}>
    <${Button}
      icon="brush"
      label=${t("brush")}
      aria-pressed=${!erase}
      onClick=${() => setErase(false)}
    />
    <${Button}
      icon="eraser"
      label=${t("eraser")}
      aria-pressed=${erase}
      onClick=${() => setErase(true)}
    />
    <label class="brush"
      ><span>${t("brushSize")}</span
      ><input
        type="range"
        min="4"
        max="256"
        value=${brush}
        onInput=${(event) => setBrush(event.target.valueAsNumber)}
    /></label>
    <i />
    <${Button} icon="undo" label=${t("undo")} disabled=${!operations.length} onClick=${undo} />
    <${Button} icon="redo" label=${t("redo")} disabled=${!undone.length} onClick=${redo} />
    <${Button} icon="invert" label=${t("invert")} onClick=${() => add({ invert: true })} />
    <${Button} icon="trash" label=${t("clearMask")} onClick=${() => add({ clear: true })} />
    <i />
    <select
      aria-label=${t("fill")}
      value=""
      onChange=${(event) => {
        add({ box: HALVES[event.target.value] });
        event.target.value = "";
      }}
    >
      <option value="" disabled selected>${t("fill")}</option>
      ${Object.keys(HALVES).map((name) => html`<option value=${name}>${t(`half_${name}`)}</option>`)}
    </select>
    <${FileButton}
      icon="open"
      label=${t("loadMask")}
      square
      onFiles=${([file]) => file && load(file)}
    />
  </div>`;
  return html`<section class="painter" onKeyDown=${keys} aria-label=${title}>
    <div class="bar">
      <strong class=${`hue-${hue}`}>${title}</strong>
      <span class="end"
        ><${Button} label=${t("cancel")} text onClick=${close} />
        <${Button} label=${t("done")} text class="primary" disabled=${busy} onClick=${done}
      /></span>
    </div>
    <div class="fit">
      <div class="frame" style=${{ "--w": width, "--h": height }}>
        ${over && html`<${Picture} path=${over} class="under" />`}
        <div class="others">
          ${state.form.references.map(
            (one, index) =>
              one.mask &&
              index % HUES !== hue &&
              !one.muted &&
              html`<${MaskView} hash=${one.mask} hue=${index % HUES} />`,
          )}
        </div>
        <canvas
          ref=${canvas}
          class=${`paint hue-${hue} ${erase ? "erasing" : ""}`}
          width=${width}
          height=${height}
          tabindex="0"
          role="img"
          aria-label=${t("canvas")}
          onPointerDown=${begin}
          onPointerMove=${go}
          onPointerUp=${end}
          onPointerCancel=${end}
        />
      </div>
    </div>
    ${tools}
    <p class="note">${t("paintNote")}</p>
  </section>`;
}
