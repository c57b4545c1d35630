// Controls that every part of the page uses.
import { html, useEffect, useRef } from "./vendor/preact-htm.js";
import { usePicture } from "./api.js";
import { t } from "./words.js";
import { forget, state } from "./state.js";

const ICONS = {
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6 6 18",
  eye: "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12Z M12 9.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6Z",
  muted:
    "M4 4l16 16M9.9 5.8A9 9 0 0 1 12 5.5c6 0 9.5 6.5 9.5 6.5a17 17 0 0 1-3 3.6M6.2 7.3A16 16 0 0 0 2.5 12S6 18.5 12 18.5a9 9 0 0 0 4.3-1.1",
  grip: "M9 5h.01M15 5h.01M9 12h.01M15 12h.01M9 19h.01M15 19h.01",
  brush: "M14 4l6 6-8.5 8.5c-1.8 1.8-6.5 1.5-7.5 1.5 0-1-.3-5.7 1.5-7.5L14 4Z M11 7l6 6",
  eraser: "M8 19h12M5.2 13.4l8.2-8.2 5.4 5.4L10.4 19H8l-2.8-2.8a2 2 0 0 1 0-2.8Z",
  undo: "M8 5 4 9l4 4M4 9h9.5a5.5 5.5 0 0 1 0 11H9",
  redo: "M16 5l4 4-4 4M20 9h-9.5a5.5 5.5 0 0 0 0 11H15",
  invert: "M12 4a8 8 0 1 0 0 16ZM12 4a8 8 0 0 1 0 16",
  dice: "M5 5h14v14H5ZM9 9h.01M15 15h.01M15 9h.01M9 15h.01",
  trash: "M5 7h14M10 7V4.5h4V7M7 7l1 12.5h8L17 7M10.5 11v5M13.5 11v5",
  compare: "M12 3v18M4.5 6.5H9v11H4.5ZM15 6.5h4.5v11H15Z",
  grid: "M4.5 4.5h6v6h-6ZM13.5 4.5h6v6h-6ZM4.5 13.5h6v6h-6ZM13.5 13.5h6v6h-6Z",
  open: "M4 18V6h5l2 2.5h9V18ZM12 16v-5M9.7 13.2 12 11l2.3 2.2",
  save: "M12 4v11M7.5 11l4.5 4.5 4.5-4.5M5 19.5h14",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8ZM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M5.3 18.7l1.4-1.4M17.3 6.7l1.4-1.4",
  moon: "M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10Z",
  auto: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16ZM12 4v16M12 8l5-1.5M12 12l8-2M12 16l6.5-1.5",
  help: "M12 3.5a8.5 8.5 0 1 0 0 17 8.5 8.5 0 0 0 0-17ZM9.6 9.6a2.4 2.4 0 1 1 3.4 2.2c-.7.3-1 .8-1 1.6v.3M12 16.5h.01",
  picture: "M4 5h16v14H4ZM4 16l4.5-4.5 4 4 2.5-2.5 5 5M15.5 9h.01",
  bookmark: "M7 4.5h10v15l-5-3.8-5 3.8Z",
  reuse: "M5 12a7 7 0 0 1 12-5l2 2M19 4.5V9h-4.5M19 12a7 7 0 0 1-12 5l-2-2M5 19.5V15h4.5",
  layers: "M12 4l8.5 4.5L12 13 3.5 8.5ZM4.5 12.5 12 16.5l7.5-4M4.5 16 12 20l7.5-4",
  face: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16ZM9 10h.01M15 10h.01M8.7 14.5c2 2 4.6 2 6.6 0",
  search: "M10.5 4.5a6 6 0 1 0 0 12 6 6 0 0 0 0-12ZM15 15l4.5 4.5",
  start: "M5 5v14M9 12h10.5M15.5 8l4 4-4 4",
  side: "M4 5h16v14H4ZM12 5v14",
};

export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true">
    <path d=${ICONS[name]} />
  </svg>`;
}

/** A button with an icon; `label` is its name, `text` shows it too. */
export function Button({ icon, label, text, class: kind = "", ...rest }) {
  return html`<button
    type="button"
    class=${`button ${kind} ${text ? "" : "square"}`}
    aria-label=${text ? null : label}
    title=${text ? null : label}
    ...${rest}
  >
    ${icon && html`<${Icon} name=${icon} />`}${text && html`<span>${label}</span>`}
  </button>`;
}

/** What the server said of a field of the request, in words beside it. */
export function Problem({ param }) {
  const found = state.errors.filter((error) => error.param === param);
  return found.map(
    (error) =>
      html`<p class="problem" id=${problemId(param)}>
        ${error.message}${error.hint && html` <span>${error.hint}</span>`}
      </p>`,
  );
}

const problemId = (param) => `problem-${param.replaceAll(".", "-")}`;

/** Attributes of a control for a field of the request. */
export function field(param) {
  if (!param) return {};
  const wrong = state.errors.some((error) => error.param === param);
  return {
    "data-param": param,
    "aria-invalid": wrong ? "true" : null,
    "aria-describedby": wrong ? problemId(param) : null,
  };
}

export function Field({ label, param, children, class: kind = "" }) {
  return html`<label class=${`field ${kind}`}
    ><span class="name">${label}</span>${children}
    ${param && html`<${Problem} param=${param} />`}</label
  >`;
}

/** A number that may be empty: `value` null shows `placeholder`. */
export function NumberBox({ label, value, onChange, param, placeholder, ...rest }) {
  const change = (event) => {
    const { value: text, valueAsNumber } = event.target;
    forget(param);
    onChange(text === "" || Number.isNaN(valueAsNumber) ? null : valueAsNumber);
  };
  return html`<input
    type="number"
    aria-label=${label}
    value=${value ?? ""}
    placeholder=${placeholder ?? ""}
    onInput=${change}
    ...${field(param)}
    ...${rest}
  />`;
}

/** Name, number and slider in one. */
export function Slider({ label, value, min, max, step, param, onChange, placeholder }) {
  const at = value ?? placeholder ?? min;
  const fill = { "--fill": `${(100 * Math.min(1, (at - min) / (max - min))).toFixed(1)}%` };
  const slide = (event) => (forget(param), onChange(event.target.valueAsNumber));
  return html`<div class="slider">
    <div class="line">
      <span class="name">${label}</span>
      <${NumberBox}
        label=${label}
        value=${value}
        param=${param}
        onChange=${onChange}
        placeholder=${placeholder}
        min=${min}
        step="any"
        class="small"
      />
    </div>
    <input
      type="range"
      aria-label=${label}
      class="range"
      style=${fill}
      min=${min}
      max=${max}
      step=${step}
      value=${at}
      onInput=${slide}
    />
    ${param && html`<${Problem} param=${param} />`}
  </div>`;
}

export function Select({ label, value, options, onChange, param, bare }) {
  const change = (event) => (forget(param), onChange(event.target.value));
  const select = html`<select
    aria-label=${label}
    value=${value}
    onChange=${change}
    ...${field(param)}
  >
    ${options.map(([name, text]) => html`<option value=${name} selected=${name === value}>${text}</option>`)}
  </select>`;
  return bare ? select : html`<${Field} label=${label} param=${param}>${select}<//>`;
}

/** A button that opens the file dialog. */
export function FileButton({ label, icon, onFiles, multiple, class: kind = "", square, ...rest }) {
  const input = useRef();
  const pick = () => {
    onFiles([...input.current.files]);
    input.current.value = "";
  };
  return html`<${Button}
      icon=${icon}
      label=${label}
      text=${!square}
      class=${kind}
      onClick=${() => input.current.click()}
      ...${rest}
    />
    <input
      ref=${input}
      type="file"
      hidden
      multiple=${multiple}
      aria-label=${label}
      accept="image/png,image/jpeg,image/webp"
      onChange=${pick}
    />`;
}

/** A picture of the API by its path. */
export function Picture({ path, alt = "", class: kind = "" }) {
  const url = usePicture(path);
  if (url === null) return html`<span class=${`gone ${kind}`}>${t("gone")}</span>`;
  const crisp = (event) => event.target.classList.toggle("crisp", event.target.naturalWidth <= 128);
  return html`<img class=${kind} src=${url} alt=${alt} onLoad=${crisp} draggable=${false} />`;
}

/** A frame of these proportions, as large as its place allows. */
export function Fit({ width, height, children, class: kind = "" }) {
  return html`<div class="fit">
    <div class=${`frame ${kind}`} style=${{ "--w": width, "--h": height }}>${children}</div>
  </div>`;
}

/** A modal dialog: Escape closes it and the focus goes back to where it was. */
export function Dialog({ title, onClose, children, class: kind = "" }) {
  const dialog = useRef();
  useEffect(() => {
    const before = document.activeElement;
    dialog.current.showModal();
    return () => before?.isConnected && before.focus();
  }, []);
  const outside = (event) => event.target === dialog.current && onClose();
  return html`<dialog
    ref=${dialog}
    class=${kind}
    aria-label=${title}
    onClose=${onClose}
    onMouseDown=${outside}
  >
    <div class="sheet">
      <header>
        <h2>${title}</h2>
        <${Button} icon="close" label=${t("close")} class="quiet" onClick=${onClose} />
      </header>
      ${children}
    </div>
  </dialog>`;
}
