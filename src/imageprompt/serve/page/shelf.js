// The right column: the gallery of what was made, and the library of styles.
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { call } from "./api.js";
import { Button, FileButton, Icon, Picture } from "./controls.js";
import { keepPicture, loadHistory, loadStyles, say, select, tell, toast } from "./jobs.js";
import { newReference, set, setForm, state } from "./state.js";
import { t } from "./words.js";

/** The picture `by` places on from the one that is shown. */
export function step(by) {
  const at = state.pictures.findIndex((one) => one.id === state.selected);
  const next =
    state.pictures[Math.min(state.pictures.length - 1, Math.max(0, at < 0 ? 0 : at + by))];
  if (!next) return;
  select(next.id);
  requestAnimationFrame(() => document.getElementById(`thumb-${next.id}`)?.focus());
}

function choose(picture) {
  const first = state.compare.length === 1 && state.compare[0];
  if (first && first !== picture.id)
    set({ compare: [first, picture.id], view: "compare", tab: "picture", toast: null });
  else {
    select(picture.id);
    set({ tab: "picture" });
  }
}

function Gallery() {
  const { pictures } = state;
  if (!pictures.length) return html`<p class="note">${t("noPictures")}</p>`;
  return html`${state.compare.length === 1 && html`<p class="note strong">${t("chooseSecond")}</p>`}
    <ul class="thumbs">
      ${pictures.map((picture) => {
        const at = state.compare.indexOf(picture.id);
        return html`<li key=${picture.id}>
          <button
            type="button"
            id=${`thumb-${picture.id}`}
            aria-pressed=${picture.id === state.selected}
            aria-label=${t("thumb", { prompt: picture.request.prompt || t("noPrompt"), seed: picture.seed })}
            onClick=${() => choose(picture)}
          >
            <${Picture} path=${picture.url} />${at >= 0 && html`<b class="mark">${"AB"[at]}</b>`}
          </button>
        </li>`;
      })}
    </ul>
    ${state.more && html`<${Button} text label=${t("older")} class="quiet" onClick=${() => tell(() => loadHistory(true))} />`}`;
}

function Library() {
  const [mixing, setMixing] = useState(null); // name -> share, or null
  const timer = useRef();
  const search = (event) => {
    set({ search: event.target.value });
    clearTimeout(timer.current);
    timer.current = setTimeout(loadStyles, 250);
  };
  const resembling = async ([file]) => {
    const hash = file && (await keepPicture(file));
    const found =
      hash &&
      (await tell(() => call("POST", "styles/search", { reference: `upload:${hash}`, limit: 24 })));
    if (found) set({ styles: found.styles, scores: found.scores, resembles: hash, search: "" });
  };
  const use = (style) => {
    setForm({ references: [...state.form.references, newReference({ style: style.name })] });
    set({ tab: "compose" });
    say(t("referenceAdded", { number: state.form.references.length + 1 }));
  };
  const remove = async (style) => {
    if (
      await tell(() => call("DELETE", `styles/${encodeURIComponent(style.name)}`).then(() => true))
    ) {
      toast(t("styleDeleted", { name: style.name }));
      loadStyles();
    }
  };
  const toggle = (name) => {
    const { [name]: known, ...others } = mixing;
    setMixing(known === undefined ? { ...mixing, [name]: 1 } : others);
  };
  return html`<div class="find">
      <label class="search"
        ><${Icon} name="search" /><input
          type="search"
          value=${state.search}
          aria-label=${t("searchStyles")}
          placeholder=${t("searchStyles")}
          onInput=${search}
      /></label>
      <${FileButton} square icon="picture" label=${t("resembling")} onFiles=${resembling} />
      <${Button}
        icon="layers"
        label=${t("mix")}
        text
        aria-pressed=${Boolean(mixing)}
        onClick=${() => setMixing(mixing ? null : {})}
      />
    </div>
    ${state.resembles && html`<p class="note line">${t("byResemblance")}<${Button} text label=${t("showAll")} class="quiet" onClick=${loadStyles} /></p>`}
    ${mixing && html`<${Mix} shares=${mixing} setShares=${setMixing} />`}
    ${state.styles.length === 0 && html`<p class="note">${state.search ? t("noneFound") : t("noStyles")}</p>`}
    <ul class="styles">
      ${state.styles.map(
        (style) =>
          html`<li key=${style.name} class=${style.adapter === null ? "off" : ""}>
            ${style.thumbnail ? html`<${Picture} path=${style.thumbnail} />` : html`<span class="blank"><${Icon} name="bookmark" /></span>`}
            <div>
              <strong>${style.name}</strong
              ><span class="tags"
                >${style.adapter === null ? t("noAdapter") : style.tags.join(" · ")}${
                  state.scores[style.name] !== undefined
                    ? html` <b>${Math.round(100 * state.scores[style.name])} %</b>`
                    : ""
                }</span
              >
            </div>
            ${
              mixing
                ? html`<label class="check"
                    ><input
                      type="checkbox"
                      checked=${style.name in mixing}
                      onChange=${() => toggle(style.name)}
                      aria-label=${t("mixWith", { name: style.name })}
                  /></label>`
                : html`<${Button}
                      text
                      label=${t("use")}
                      aria-label=${t("useStyle", { name: style.name })}
                      disabled=${style.adapter === null}
                      onClick=${() => use(style)}
                    />
                    <${Button}
                      icon="trash"
                      label=${t("deleteStyle", { name: style.name })}
                      class="quiet"
                      onClick=${() => remove(style)}
                    />`
            }
          </li>`,
      )}
    </ul>`;
}

/** Shares of the styles to mix, and the name of the new one. */
function Mix({ shares, setShares }) {
  const name = useRef();
  const names = Object.keys(shares);
  const total = names.reduce((sum, one) => sum + shares[one], 0) || 1;
  const mix = async (event) => {
    event.preventDefault();
    const weights = Object.fromEntries(names.map((one) => [one, shares[one] / total]));
    const body = { name: name.current.value.trim() || names.join("-").slice(0, 60), weights };
    const made = await tell(() => call("POST", "styles/mix", body));
    if (!made) return;
    setShares(null);
    toast(t("styleKept", { name: made.name }));
    loadStyles();
  };
  return html`<form class="mix" onSubmit=${mix}>
    <p class="note">${names.length < 2 ? t("mixNote") : t("mixShares")}</p>
    ${names.map(
      (one) =>
        html`<label
          ><span>${one}</span
          ><input
            type="range"
            min="0.05"
            max="1"
            step="0.05"
            value=${shares[one]}
            onInput=${(event) => setShares({ ...shares, [one]: event.target.valueAsNumber })}
          /><b>${Math.round((100 * shares[one]) / total)} %</b></label
        >`,
    )}
    ${
      names.length >= 2 &&
      html`<div class="line">
        <input
          ref=${name}
          type="text"
          maxlength="60"
          aria-label=${t("styleName")}
          placeholder=${t("styleName")}
        />
        <button class="button primary" type="submit">${t("mixNow")}</button>
      </div>`
    }
  </form>`;
}

export function Shelf() {
  const { panel } = state;
  useEffect(() => {
    if (state.server) loadStyles();
  }, [state.server !== null]);
  const tab = (name, count) =>
    html`<button
      type="button"
      role="tab"
      id=${`tab-${name}`}
      aria-selected=${panel === name}
      aria-controls="shelf"
      tabindex=${panel === name ? 0 : -1}
      onClick=${() => set({ panel: name })}
      onKeyDown=${arrows}
    >
      ${t(name)}<span class="count">${count || ""}</span>
    </button>`;
  const arrows = (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    event.stopPropagation();
    const other = panel === "gallery" ? "library" : "gallery";
    set({ panel: other });
    requestAnimationFrame(() => document.getElementById(`tab-${other}`).focus());
  };
  return html`<div class="tabs" role="tablist" aria-label=${t("shelf")}>
      ${tab("gallery", state.pictures.length)}${tab("library", state.styles.length)}
    </div>
    <div class="scroll" id="shelf" role="tabpanel" aria-labelledby=${`tab-${panel}`} tabindex="0">
      ${panel === "gallery" ? html`<${Gallery} />` : html`<${Library} />`}
    </div>`;
}
