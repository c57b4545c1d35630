// Two pictures over each other, with a boundary to move, or side by side.
import { html, useState } from "./vendor/preact-htm.js";
import { Button, Fit, Picture } from "./controls.js";
import { pictureOf } from "./jobs.js";
import { set, state } from "./state.js";
import { t } from "./words.js";

export function Compare() {
  const [cut, setCut] = useState(50);
  const [beside, setBeside] = useState(false);
  const [a, b] = state.compare.map(pictureOf);
  if (!a || !b) return null;
  const label = (one, kind) =>
    html`<span class=${`label ${kind}`}>${kind.toUpperCase()} · ${one.seed}</span>`;
  const bar = html`<div class="bar">
    <strong>${t("comparing")}</strong
    ><span class="end">
      <${Button}
        icon="side"
        label=${t("sideBySide")}
        text
        aria-pressed=${beside}
        onClick=${() => setBeside(!beside)} />
      <${Button}
        icon="compare"
        label=${t("swap")}
        text
        onClick=${() => set({ compare: [b.id, a.id] })} />
      <${Button}
        label=${t("done")}
        text
        class="primary"
        onClick=${() => set({ view: "picture", compare: [] })}
    /></span>
  </div>`;
  if (beside) {
    return html`${bar}
      <div class="beside">
        ${[
          [a, "a"],
          [b, "b"],
        ].map(
          ([one, kind]) =>
            html`<${Fit} key=${kind} width=${one.width} height=${one.height}>
              <${Picture} path=${one.url} alt=${one.request.prompt} />${label(one, kind)}<//
            >`,
        )}
      </div>`;
  }
  return html`${bar}<${Fit} width=${a.width} height=${a.height} class="compare">
      <${Picture} path=${a.url} alt=${`A: ${a.request.prompt}`} />
      <span class="over" style=${{ "--cut": `${cut}%` }}
        ><${Picture} path=${b.url} alt=${`B: ${b.request.prompt}`}
      /></span>
      ${label(a, "a")}${label(b, "b")}
      <input
        type="range"
        min="0"
        max="100"
        step="0.5"
        value=${cut}
        aria-label=${t("compareAt")}
        onInput=${(event) => setCut(event.target.valueAsNumber)} />
      <i class="cut" style=${{ "--cut": `${cut}%` }} aria-hidden="true"
    /><//>`;
}
