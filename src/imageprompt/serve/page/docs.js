// The page of the API: what /openapi.json says, to read; routes that only read can be tried.
import { html, render, useEffect, useState } from "./vendor/preact-htm.js";
import { call } from "./api.js";
import { Button, Icon } from "./controls.js";
import { applyLooks, AskKey, Brand, Looks } from "./frame.js";
import { words } from "./jobs.js";
import { onChange, set, state } from "./state.js";
import { t } from "./words.js";

const LONGEST = 20_000; // letters of an answer
const HUES = { get: 1, post: 2, delete: 0 };
const FORMATS = {
  binary: "file",
  picture: "part:NAME, upload:HASH, result:JOB/N",
  tokens: "tokens:HASH/INDEX",
};
const UP = "../.."; // from the own API to the paths of the document

// ── what the document says ─────────────────────────────────────────────────────────────────────

const idOf = (method, path) => `${method}${path.replace(/[^A-Za-z0-9]+/g, "-")}`;

/** The routes in groups, in the order of the document's tags. */
function groupsOf(described) {
  const groups = new Map(described.tags.map((tag) => [tag.name, { ...tag, routes: [] }]));
  for (const [path, operations] of Object.entries(described.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      groups.get(operation.tags[0]).routes.push({ id: idOf(method, path), method, path, operation });
    }
  }
  return [...groups.values()];
}

const found = (schema) =>
  schema.$ref ? state.api.components.schemas[schema.$ref.split("/").pop()] : schema;

/** A schema in a few words. */
function typeOf(schema) {
  schema = found(schema);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(` ${t("apiOr")} `);
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(` ${t("apiOr")} `);
  if (FORMATS[schema.format]) return FORMATS[schema.format];
  if (schema.type === "array") return `${t("apiListOf")} ${typeOf(schema.items || {})}`;
  return schema.type || "any";
}

/** Ranges and defaults. */
function limitsOf({ minimum, maximum, default: usual }) {
  const range = minimum === undefined && maximum === undefined ? "" : `${minimum ?? ""} … ${maximum ?? ""}`;
  const plain = usual !== undefined && usual !== null && typeof usual !== "object" && usual !== "";
  return [range, plain && t("apiDefault", { value: usual })].filter(Boolean).join(" · ");
}

/** The object that a schema has inside, if any. */
function insideOf(schema) {
  schema = found(schema);
  if (schema.properties) return schema;
  if (schema.type === "array") return insideOf(schema.items || {});
  return schema.anyOf?.map(insideOf).find(Boolean);
}

/** A text of the document; what stands between backticks is code. */
const marked = (text = "") =>
  text.split("`").map((part, at) => (at % 2 ? html`<code>${part}</code>` : part));

// ── a route ────────────────────────────────────────────────────────────────────────────────────

function OneField({ name, schema, required }) {
  const inside = insideOf(schema);
  return html`<div>
    <dt>
      <code>${name}</code> <span class="value">${typeOf(schema)}</span>
      <span class="value">${limitsOf(schema)}</span>
      ${required && html`<span class="required">${t("apiRequired")}</span>`}
    </dt>
    <dd>
      ${marked(schema.description)}
      ${
        inside &&
        html`<details>
          <summary>${Object.keys(inside.properties).slice(0, 4).join(", ")} …</summary>
          <${Fields} schema=${inside} />
        </details>`
      }
    </dd>
  </div>`;
}

function Fields({ schema }) {
  return html`<dl class="fields">
    ${Object.entries(schema.properties).map(
      ([name, one]) =>
        html`<${OneField} name=${name} schema=${one} required=${schema.required?.includes(name)} />`,
    )}
  </dl>`;
}

function Body({ content }) {
  const kinds = Object.keys(content);
  const inside = insideOf(content[kinds[0]].schema);
  return html`<h3>${t("apiBody")}</h3>
    <p class="note">${kinds.map((kind, at) => html`${at > 0 && ` ${t("apiOr")} `}<code>${kind}</code>`)}</p>
    ${inside && html`<${Fields} schema=${inside} />`}`;
}

function Parameters({ parameters }) {
  return html`<h3>${t("apiParameters")}</h3>
    <dl class="fields">
      ${parameters.map(
        ({ name, schema, required }) =>
          html`<${OneField} name=${name} schema=${schema} required=${required} />`,
      )}
    </dl>`;
}

function Answers({ responses }) {
  return html`<h3>${t("apiAnswers")}</h3>
    <dl class="fields">
      ${Object.entries(responses).map(
        ([status, { description, content }]) =>
          html`<div>
            <dt><code>${status}</code> <span class="value">${description}</span></dt>
            <dd>
              ${
                status === "default" &&
                html`<${Fields} schema=${insideOf(content["application/json"].schema)} />`
              }
            </dd>
          </div>`,
      )}
    </dl>`;
}

/** The path of a request with its values; of the query, those that are not empty. */
function filled(path, parameters, values) {
  const query = new URLSearchParams();
  for (const { name, in: place } of parameters) {
    const value = values[name] || "";
    if (place === "path") path = path.replace(`{${name}}`, encodeURIComponent(value));
    else if (value) query.set(name, value);
  }
  return `${UP}${path}${query.size ? `?${query}` : ""}`;
}

/** The beginning of an answer as a text, while it comes. */
async function* textOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    if (text.length > LONGEST) {
      reader.cancel();
      yield `${text.slice(0, LONGEST)}\n\n${t("apiCut")}`;
      return;
    }
    yield text;
  }
}

const pretty = (text) => {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
};

function Try({ route }) {
  const [values, setValues] = useState({});
  const [answer, setAnswer] = useState(null);
  const parameters = route.operation.parameters || [];
  const send = async (event) => {
    event.preventDefault();
    const began = performance.now();
    try {
      const path = filled(route.path, parameters, values);
      const response = await call("GET", path, null, { raw: "any" });
      const kind = (response.headers.get("Content-Type") || "").split(";")[0];
      const told = { status: response.status, kind, ms: Math.round(performance.now() - began) };
      if (kind.startsWith("image/")) {
        setAnswer({ ...told, url: URL.createObjectURL(await response.blob()) });
        return;
      }
      setAnswer({ ...told, text: "" });
      for await (const text of textOf(response)) setAnswer({ ...told, text });
    } catch (error) {
      setAnswer({ text: words(error) });
    }
  };
  return html`<h3>${t("apiTry")}</h3>
    <form class="try" onSubmit=${send}>
      ${parameters.map(
        ({ name, schema, required }) =>
          html`<label class="field"
            ><span class="name">${name}</span
            ><input
              type="text"
              required=${required}
              placeholder=${schema.default ?? ""}
              value=${values[name] || ""}
              onInput=${(event) => setValues({ ...values, [name]: event.target.value })}
          /></label>`,
      )}
      <button type="submit" class="button primary">${t("apiSend")}</button>
    </form>
    <div class="answer" role="status">
      ${
        answer &&
        html`<span class="value">${answer.status} ${answer.kind} ${answer.ms !== undefined && `${answer.ms} ms`}</span>
          ${
            answer.url
              ? html`<img src=${answer.url} alt=${t("picture")} />`
              : html`<pre tabindex="0">${pretty(answer.text)}</pre>`
          }`
      }
    </div>`;
}

function Route({ route, open }) {
  const [opened, setOpened] = useState(false);
  const { method, path, operation } = route;
  useEffect(() => open && setOpened(true), [open]);
  const content = operation.requestBody?.content;
  return html`<details
    class=${`route hue-${HUES[method] ?? 7}`}
    id=${route.id}
    open=${opened}
    onToggle=${(event) => event.target === event.currentTarget && setOpened(event.target.open)}
  >
    <summary>
      <strong class="method">${method.toUpperCase()}</strong> <code>${path}</code>
      <span class="note">${marked(operation.description)}</span>
    </summary>
    ${
      opened &&
      html`<div class="inside">
        ${operation.parameters?.length > 0 && html`<${Parameters} parameters=${operation.parameters} />`}
        ${content && html`<${Body} content=${content} />`}
        <${Answers} responses=${operation.responses} />
        ${method === "get" && html`<${Try} route=${route} />`}
      </div>`
    }
  </details>`;
}

// ── page ───────────────────────────────────────────────────────────────────────────────────────

function Document() {
  const [search, setSearch] = useState("");
  const [place, setPlace] = useState(location.hash.slice(1));
  useEffect(() => {
    const go = () => setPlace(location.hash.slice(1));
    addEventListener("hashchange", go);
    document.getElementById(place)?.scrollIntoView();
    return () => removeEventListener("hashchange", go);
  }, [place]);
  const fits = ({ method, path, operation }) =>
    `${method} ${path} ${operation.description}`.toLowerCase().includes(search.toLowerCase());
  const groups = groupsOf(state.api)
    .map((group) => ({ ...group, routes: group.routes.filter(fits) }))
    .filter((group) => group.routes.length > 0);
  return html`<nav aria-label=${t("api")}>
      ${groups.map(
        ({ name, routes }) =>
          html`<a href=${`#${name}`}>${name} <span class="value">${routes.length}</span></a>`,
      )}
    </nav>
    <main>
      <div class="lead">
        <p class="note">${t("apiNote")} <a href="openapi.json" download>openapi.json</a></p>
        <input
          type="search"
          aria-label=${t("apiFind")}
          placeholder=${t("apiFind")}
          value=${search}
          onInput=${(event) => setSearch(event.target.value)}
        />
      </div>
      ${groups.length === 0 && html`<p class="note">${t("noneFound")}</p>`}
      ${groups.map(
        ({ name, description, routes }) =>
          html`<section key=${name} aria-labelledby=${name}>
            <h2 id=${name}>${name}</h2>
            <p class="note">${description}</p>
            ${routes.map((route) => html`<${Route} key=${route.id} route=${route} open=${route.id === place} />`)}
          </section>`,
      )}
    </main>`;
}

function App() {
  applyLooks();
  return html`<header class="top">
      <${Brand}><span>${t("api")}</span><//>
      <span class="base">${state.api?.info.version}</span
      ><span class="end"
        ><a class="button quiet short" href="./" aria-label=${t("toPage")}><${Icon} name="picture" /><span>${t("toPage")}</span></a>
        <${Looks}
      /></span>
    </header>
    ${
      state.offline &&
      html`<p class="offline" role="alert">
        ${state.offline} <${Button} text label=${t("again")} onClick=${start} />
      </p>`
    }
    <div class="docs">${state.api && html`<${Document} />`}</div>
    ${state.dialog && html`<${AskKey} />`}`;
}

async function start() {
  set({ offline: "" });
  try {
    set({ api: await call("GET", `${UP}/openapi.json`) });
  } catch (error) {
    set({ offline: words(error) });
  }
}

const draw = () => render(html`<${App} />`, document.getElementById("app"));
onChange(draw);
draw();
start();
