// The page: head, three columns, dialogs, keys, and pictures that are dropped anywhere.
import { html, render, useEffect, useState } from "./vendor/preact-htm.js";
import { Composer } from "./composer.js";
import { Button, Dialog, FileButton, Icon } from "./controls.js";
import { applyLooks, AskKey, Brand, closeDialog, Looks } from "./frame.js";
import {
  cancel,
  giveMissing,
  loadHistory,
  remove,
  run,
  selected,
  takeFiles,
  useTokens,
  words,
} from "./jobs.js";
import { Shelf, step } from "./shelf.js";
import { loadServer, onChange, set, state } from "./state.js";
import { Stage } from "./stage.js";
import { t } from "./words.js";
import { Workflows } from "./workflows.js";

// ── head ───────────────────────────────────────────────────────────────────────────────────────

function Head() {
  return html`<header class="top">
    <${Brand} />
    <span class="base">${state.server?.base.name}</span
    ><span class="end">
      <${Button}
        text
        icon="layers"
        label=${t("workflows")}
        class="quiet short"
        onClick=${() => set({ dialog: { name: "workflows" } })} />
      <${FileButton}
        icon="open"
        label=${t("openPicture")}
        class="quiet short"
        onFiles=${takeFiles}
        title=${t("openHint")} />
      <${Looks} />
      <${Button}
        icon="help"
        label=${t("help")}
        class="quiet"
        onClick=${() => set({ dialog: { name: "help" } })}
    /></span>
  </header>`;
}

// ── dialogs ────────────────────────────────────────────────────────────────────────────────────

const KEYS = [
  ["Ctrl ↵", "key_run"],
  ["Shift X", "key_cancel"],
  ["Alt A", "key_prompt"],
  ["← →", "key_gallery"],
  ["Del", "key_delete"],
  ["↑ ↓", "key_move"],
  ["Ctrl Z", "key_undo"],
  ["[ ]", "key_brush"],
  ["E", "key_eraser"],
  ["?", "key_help"],
  ["Esc", "key_close"],
];

function Help() {
  return html`<${Dialog} title=${t("help")} onClose=${closeDialog}
    ><dl class="keys">
      ${KEYS.map(
        ([keys, text]) =>
          html`<div>
            <dt>${keys.split(" ").map((key) => html`<kbd>${key}</kbd>`)}</dt>
            <dd>${t(text)}</dd>
          </div>`,
      )}
    </dl>
    <p class="note">${t("helpDrop")} <a href="docs">${t("api")}</a></p><//
  >`;
}

function Missing() {
  const [wrong, setWrong] = useState("");
  const { missing, tokens } = state.dialog;
  const give = async (entry, file) =>
    file && setWrong((await giveMissing(entry, file)) ? "" : entry.hash);
  return html`<${Dialog} title=${t("missingTitle")} onClose=${closeDialog}
    ><p>${t("missingText")}</p>
    <ul class="missing">
      ${missing.map(
        (entry) =>
          html`<li key=${entry.hash}>
            <div>
              <strong>${entry.name || t("picture")}</strong>
              <code>${entry.hash.slice(0, 16)}…</code
              >${wrong === entry.hash && html`<p class="problem" role="alert">${t("wrongFile")}</p>`}
            </div>
            <${FileButton}
              icon="open"
              label=${t("chooseFile")}
              onFiles=${([file]) => give(entry, file)}
            />
          </li>`,
      )}
    </ul>
    <p class="line end">
      ${
        missing.some((entry) => tokens[/^references\.(\d+)/.exec(entry.param || "")?.[1]]) &&
        html`<${Button}
          text
          icon="layers"
          label=${t("useTokens")}
          class="primary"
          onClick=${useTokens}
        />`
      } <${Button} text label=${t("later")} onClick=${closeDialog} /></p
  ><//>`;
}

const DIALOGS = { help: Help, missing: Missing, key: AskKey, workflows: Workflows };

function Toast() {
  const { toast } = state;
  useEffect(() => {
    if (!toast) return undefined;
    const timer = setTimeout(() => state.toast === toast && set({ toast: null }), 7000);
    return () => clearTimeout(timer);
  }, [toast]);
  const act = () => {
    set({ toast: null });
    toast.run();
  };
  return html`<div class=${`toast ${toast ? "shown" : ""}`} role="status">
    ${
      toast &&
      html`<span>${toast.text}</span>
        ${toast.run && html`<${Button} text label=${toast.action} class="quiet" onClick=${act} />`}
        <${Button}
          icon="close"
          label=${t("close")}
          class="quiet"
          onClick=${() => set({ toast: null })}
        />`
    }
  </div>`;
}

// ── page ───────────────────────────────────────────────────────────────────────────────────────

const TABS = [
  ["compose", "brush"],
  ["picture", "picture"],
  ["gallery", "grid"],
  ["library", "bookmark"],
];

function App() {
  applyLooks();
  const { tab, dialog } = state;
  const Shown = dialog && DIALOGS[dialog.name];
  const go = (name) =>
    set({ tab: name, ...(["gallery", "library"].includes(name) && { panel: name }) });
  return html`<${Head} />
    ${state.offline && html`<p class="offline" role="alert">${state.offline} <${Button} text label=${t("again")} onClick=${start} /></p>`}
    <main class=${`columns tab-${tab}`}>
      <section class="compose" aria-label=${t("compose")}><${Composer} /></section>
      <section class="stage" aria-label=${t("stage")}><${Stage} /></section>
      <section class="shelf" aria-label=${t("shelf")}><${Shelf} /></section>
    </main>
    <nav class="bottom" aria-label=${t("views")}>
      ${TABS.map(
        ([name, icon]) =>
          html`<button
            type="button"
            aria-current=${tab === name ? "page" : null}
            onClick=${() => go(name)}
          >
            <${Icon} name=${icon} /><span>${t(`tab_${name}`)}</span>
          </button>`,
      )}
    </nav>
    <p class="hidden" role="status">${state.said}</p>
    <${Toast} /> ${
      state.dropping &&
      html`<div class="drop">
        <p><${Icon} name="picture" />${t("dropHere")}<small>${t("dropNote")}</small></p>
      </div>`
    }
    ${Shown && html`<${Shown} key=${dialog.name} />`}`;
}

// ── keys and drops ─────────────────────────────────────────────────────────────────────────────

addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const typing = event.target.matches?.(
    "textarea, select, input:not([type=range], [type=checkbox])",
  );
  const command = event.ctrlKey || event.metaKey;
  const go = (does) => {
    event.preventDefault();
    does();
  };
  if (command && event.key === "Enter") return go(() => state.server && run());
  if (event.altKey && event.code === "KeyA") {
    return go(() => {
      set({ tab: "compose" });
      requestAnimationFrame(() => document.getElementById("prompt").focus());
    });
  }
  if (typing || command || event.altKey) return undefined;
  if (event.shiftKey && event.code === "KeyX") return go(() => cancel());
  if (event.key === "?") return go(() => set({ dialog: { name: "help" } }));
  if (event.key === "Escape" && state.view !== "picture")
    return go(() => set({ view: "picture", paint: null, compare: [] }));
  const inGallery = event.target === document.body || event.target.closest?.(".thumbs");
  if (!inGallery || event.shiftKey) return undefined;
  if (event.key === "ArrowRight" || event.key === "ArrowDown") return go(() => step(1));
  if (event.key === "ArrowLeft" || event.key === "ArrowUp") return go(() => step(-1));
  if (event.key === "Delete") return go(() => selected() && remove(selected()));
  return undefined;
});

let depth = 0;
const hasFiles = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
addEventListener(
  "dragenter",
  (event) => hasFiles(event) && ++depth === 1 && set({ dropping: true }),
);
addEventListener(
  "dragleave",
  (event) => hasFiles(event) && (depth = Math.max(0, depth - 1)) === 0 && set({ dropping: false }),
);
addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  depth = 0;
  if (state.dropping) set({ dropping: false });
  if (!hasFiles(event) || event.defaultPrevented) return;
  event.preventDefault();
  takeFiles([...event.dataTransfer.files]);
});
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files || [])];
  if (files.length) takeFiles(files);
});

// ── start ──────────────────────────────────────────────────────────────────────────────────────

async function start() {
  set({ offline: "" });
  try {
    await loadServer();
    await loadHistory();
  } catch (error) {
    set({ offline: words(error) });
    if (error.status === 503) setTimeout(start, 2000);
  }
}

const draw = () => render(html`<${App} />`, document.getElementById("app"));
onChange(draw);
draw();
start();
