// What both pages have: the name at the top, colours and language, and the dialog that asks for a key.
import { html, useRef } from "./vendor/preact-htm.js";
import { onKeyNeeded } from "./api.js";
import { Button, Dialog } from "./controls.js";
import { looks, set, setLooks, state } from "./state.js";
import { LANGUAGES, t, useLanguage } from "./words.js";

const THEMES = { "": "auto", light: "sun", dark: "moon" };

export function applyLooks() {
  const language = useLanguage(looks.language);
  document.documentElement.lang = language === "zh" ? "zh-Hans" : language;
  document.documentElement.style.colorScheme = looks.theme || "light dark";
}

export function Brand({ children }) {
  return html`<h1>
    <svg viewBox="0 0 32 32" aria-hidden="true">
      <rect x="3" y="3" width="18" height="18" rx="3" />
      <rect class="front" x="11" y="11" width="18" height="18" rx="3" /></svg
    >imageprompt${children}
  </h1>`;
}

export function Looks() {
  const themes = Object.keys(THEMES);
  const next = themes[(themes.indexOf(looks.theme) + 1) % themes.length];
  return html`<${Button}
      icon=${THEMES[looks.theme]}
      label=${t(`theme_${THEMES[looks.theme]}`)}
      class="quiet"
      onClick=${() => setLooks({ theme: next })} />
    <select
      class="language"
      aria-label=${t("language")}
      value=${useLanguage(looks.language)}
      onChange=${(event) => setLooks({ language: event.target.value })}
    >
      ${Object.entries(LANGUAGES).map(([name, text]) => html`<option value=${name} selected=${name === useLanguage(looks.language)}>${text}</option>`)}
    </select>`;
}

export const closeDialog = () => set({ dialog: null });

export function AskKey() {
  const input = useRef();
  const { wrong, answer } = state.dialog;
  const finish = (key) => {
    closeDialog();
    answer(key);
  };
  return html`<${Dialog} title=${t("keyTitle")} onClose=${() => finish("")}
    ><form
      onSubmit=${(event) => {
        event.preventDefault();
        finish(input.current.value.trim());
      }}
    >
      <p>${wrong ? t("keyWrong") : t("keyText")}</p>
      <label class="field"
        ><span class="name">${t("key")}</span
        ><input ref=${input} type="password" autocomplete="off" required
      /></label>
      <p class="line end"><button class="button primary" type="submit">${t("enter")}</button></p>
    </form><//
  >`;
}

onKeyNeeded((wrong) => new Promise((answer) => set({ dialog: { name: "key", wrong, answer } })));
