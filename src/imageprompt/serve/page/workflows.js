// Workflows: whole jobs with few inputs. A form made of what the server lists, and what was measured.
import { html, useEffect, useState } from "./vendor/preact-htm.js";
import { call } from "./api.js";
import { Button, Dialog, FileButton, Icon, Picture } from "./controls.js";
import { closeDialog } from "./frame.js";
import { follow, keepPicture, say, tell, words } from "./jobs.js";
import { set, state } from "./state.js";
import { t } from "./words.js";

/** What a person typed as the value of the API; undefined where it is empty. */
function typed(input, text) {
  if (text === undefined || text === "" || text === false) return undefined;
  if (input.kind === "number") return Number(text);
  if (input.kind === "numbers") return text.split(/[\s,x×]+/).map(Number);
  return text;
}

const bodyOf = (workflow, values) => {
  const body = {};
  for (const input of workflow.inputs) {
    const given = values[input.name];
    const value = input.kind.startsWith("picture")
      ? given?.length && (input.kind === "picture" ? given[0] : given)
      : typed(input, given);
    if (value || value === 0) body[input.name] = value;
  }
  return body;
};

const named = (input) => input.name.replaceAll("_", " ");

function Pictures({ input, value = [], onChange }) {
  const several = input.kind === "pictures";
  const add = async (files) => {
    const found = [];
    for (const file of several ? files : files.slice(0, 1)) {
      const hash = await keepPicture(file);
      if (hash) found.push(`upload:${hash}`);
    }
    onChange(several ? [...value, ...found] : found);
  };
  return html`<div class="chosen">
    ${value.map(
      (one, at) =>
        html`<span key=${one}
          ><${Picture} path=${`uploads/${one.slice(7)}`} alt=${named(input)} /><${Button}
            icon="close"
            label=${t("removeInput", { name: named(input), at: at + 1 })}
            class="quiet"
            onClick=${() => onChange(value.filter((_, index) => index !== at))}
        /></span>`,
    )}
    <${FileButton}
      square
      icon="plus"
      label=${t("addInput", { name: named(input) })}
      multiple=${several}
      onFiles=${add}
    />
  </div>`;
}

function Control({ input, value, onChange }) {
  if (input.kind.startsWith("picture"))
    return html`<${Pictures} input=${input} value=${value} onChange=${onChange} />`;
  const id = `input-${input.name}`;
  const change = (event) => onChange(event.target.value);
  if (input.kind === "switch")
    return html`<input
      id=${id}
      type="checkbox"
      checked=${Boolean(value)}
      onChange=${(event) => onChange(event.target.checked)}
    />`;
  if (input.kind === "choice")
    return html`<select id=${id} value=${value || ""} onChange=${change}>
      ${["", ...input.choices].map((one) => html`<option value=${one}>${one || t("automatic")}</option>`)}
    </select>`;
  const number = input.kind === "number";
  return html`<input
    id=${id}
    type=${number ? "number" : "text"}
    step=${number ? "any" : null}
    min=${input.minimum}
    max=${input.maximum}
    required=${input.required}
    value=${value ?? ""}
    onInput=${change}
  />`;
}

function Row({ input, wrong, ...rest }) {
  const picture = input.kind.startsWith("picture");
  return html`<div class="field" data-param=${input.name}>
    ${
      picture
        ? html`<span class="name">${named(input)}${input.required && " *"}</span>`
        : html`<label class="name" for=${`input-${input.name}`}
            >${named(input)}${input.required && " *"}</label
          >`
    }
    <${Control} input=${input} ...${rest} />
    <small class="note">${input.help}</small>
    ${wrong && html`<p class="problem" role="alert">${wrong}</p>`}
  </div>`;
}

/** The dialog with the list, and the form of the one that is chosen. */
export function Workflows() {
  const [found, setFound] = useState(null);
  const [name, setName] = useState("");
  const [values, setValues] = useState({});
  const [error, setError] = useState(null);
  useEffect(() => {
    tell(() => call("GET", "workflows")).then((all) => setFound(all?.workflows || []));
  }, []);
  const chosen = found?.find((one) => one.name === name);
  const choose = (next) => {
    setName(next);
    setError(null);
  };
  const send = async (event) => {
    event.preventDefault();
    setError(null);
    try {
      const job = await call("POST", `workflows/${name}`, bodyOf(chosen, values));
      closeDialog();
      set({ tab: "picture" });
      follow(job);
    } catch (problem) {
      if (!problem.type) throw problem;
      setError(problem);
      say(words(problem));
    }
  };
  const own = chosen?.inputs.some((one) => one.name === error?.param);
  return html`<${Dialog} title=${t("workflows")} class="wide" onClose=${closeDialog}>
    ${
      chosen
        ? html`<form onSubmit=${send} novalidate>
            <p class="line">
              <${Button} text icon="undo" label=${t("allWorkflows")} onClick=${() => choose("")} />
              <strong>${chosen.name}</strong>
            </p>
            <p class="note">${chosen.summary}</p>
            ${error && !own && html`<p class="problem" role="alert">${words(error)}</p>`}
            ${chosen.inputs.map(
              (input) =>
                html`<${Row}
                  key=${input.name}
                  input=${input}
                  value=${values[input.name]}
                  onChange=${(value) => setValues({ ...values, [input.name]: value })}
                  wrong=${error?.param === input.name && words(error)}
                />`,
            )}
            <h3>${t("measures")}</h3>
            <ul class="note">
              ${chosen.measures.map((one) => html`<li><code>${one.name}</code> ${one.summary}</li>`)}
            </ul>
            <p class="line end">
              <button class="button primary" type="submit">${t("runWorkflow")}</button>
            </p>
          </form>`
        : html`<p class="note">${t("workflowsNote")}</p>
            <ul class="workflows">
              ${(found || []).map(
                (one) =>
                  html`<li key=${one.name}>
                    <div>
                      <strong>${one.name}</strong>
                      <p class="note">${one.summary}${!one.served && html`<br />${t("byCommand")}`}</p>
                    </div>
                    ${
                      one.served &&
                      html`<${Button}
                        text
                        label=${t("use")}
                        aria-label=${t("useWorkflow", { name: one.name })}
                        onClick=${() => choose(one.name)}
                      />`
                    }
                  </li>`,
              )}
            </ul>`
    }
  <//>`;
}

/** A figure in words: `scale 1, style 0.9`, a line for each of a list. */
function shown(value) {
  if (Array.isArray(value)) {
    const lines = value.some((one) => one !== null && typeof one === "object");
    return value.map(shown).join(lines ? "\n" : " ");
  }
  if (value === null || typeof value !== "object") return String(value ?? "–");
  return Object.entries(value)
    .map(([name, one]) => `${name.replaceAll("_", " ")} ${shown(one)}`)
    .join(", ");
}

/** What the workflow that made a picture has measured. */
export function Report({ picture }) {
  const [report, setReport] = useState(null);
  const runs = state.jobs.some((one) => one.id === picture.job);
  useEffect(() => {
    setReport(null);
    if (!runs) tell(() => call("GET", `jobs/${picture.job}/report`)).then(setReport);
  }, [picture.job, runs]);
  if (!report) return null;
  const own = report.pictures.find((one) => one.index === picture.index);
  return html`<section class="report" aria-label=${t("measured")} tabindex="0">
    <p class="prompt">
      <${Icon} name="layers" /> ${report.workflow}${own && `: ${own.label}`}
    </p>
    <dl>
      ${Object.entries({ ...own?.measured, ...report.measured }).map(
        ([name, value]) =>
          html`<div>
            <dt>${name.replaceAll("_", " ")}</dt>
            <dd>${shown(value)}</dd>
          </div>`,
      )}
    </dl>
    ${report.notes.map((line) => html`<p class="note">${line}</p>`)}
  </section>`;
}
