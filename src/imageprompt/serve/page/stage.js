// The centre: the picture of now, in the making or made, with what made it.
import { html } from "./vendor/preact-htm.js";
import { call, pictureUrl } from "./api.js";
import { Compare } from "./compare.js";
import { Progress } from "./composer.js";
import { Button, FileButton, Fit, Icon, Picture } from "./controls.js";
import {
  addReferences,
  keepPicture,
  pictureOf,
  remove,
  reuse,
  say,
  selected,
  takeFiles,
  tell,
} from "./jobs.js";
import { MaskView, Painter } from "./masks.js";
import { halfOf, hueOf } from "./references.js";
import { active, set, setForm, size, state } from "./state.js";
import { Sweep } from "./sweep.js";
import { t } from "./words.js";
import { Report } from "./workflows.js";

const Masks = () =>
  active()
    .filter((one) => one.mask)
    .map((one) => html`<${MaskView} key=${one.id} hash=${one.mask} hue=${hueOf(one.id)} />`);

function Empty() {
  const [width, height] = size();
  const masks = active().some((one) => one.mask);
  const ready = active().length > 0 || state.form.prompt;
  return html`<${Fit} width=${width} height=${height} class="blank">
    <${Masks} />${
      !masks &&
      html`<div class="welcome">
        <${Icon} name="picture" />
        <h2>${ready ? t("readyTitle") : t("emptyTitle")}</h2>
        <p>${ready ? t("readyText") : t("emptyText")}</p>
        ${
          !ready &&
          html`<p class="line">
            <${FileButton}
              icon="plus"
              label=${t("addReference")}
              class="primary"
              multiple
              onFiles=${addReferences}
            />
            <${FileButton} icon="open" label=${t("openPicture")} onFiles=${takeFiles} />
          </p>`
        }
      </div>`
    } <span class="dimensions">${width} × ${height}</span><//
  >`;
}

function Running({ job }) {
  const [width, height] = job.request.size || size();
  const shown = Object.keys(job.previews);
  const count = job.request.num_images || 1;
  return html`<${Fit}
    width=${width}
    height=${height}
    class=${`running ${count > 1 ? "several" : ""}`}
  >
    ${
      shown.length
        ? shown
            .slice(0, 9)
            .map(
              (index) => html`<img key=${index} src=${job.previews[index]} alt=${t("preview")} />`,
            )
        : html`<div class="welcome quiet">
            <p>${job.state === "running" ? t("running") : t("waiting")}</p>
          </div>`
    }<//
  >`;
}

/** What made a picture, in one line and its details. */
function Recipe({ picture }) {
  const { request } = picture;
  const references = (request.references || []).filter(
    (one) => one.reference || one.style || one.image_prompt,
  );
  const facts = [
    [t("size"), `${picture.width} × ${picture.height}`],
    [t("seed"), picture.seed],
    [t("steps"), request.steps],
    [t("guidance"), request.guidance_scale],
    [t("eta"), request.eta],
  ];
  return html`<section class="recipe" aria-label=${t("recipe")}>
    <div class="made">
      <p class="prompt">${request.prompt || html`<em>${t("noPrompt")}</em>`}</p>
      <dl>
        ${facts
          .filter(([, value]) => value !== undefined && value !== null)
          .map(
            ([name, value]) =>
              html`<div>
                <dt>${name}</dt>
                <dd>${value}</dd>
              </div>`,
          )}
      </dl>
    </div>
    ${
      references.length > 0 &&
      html`<ul class="from">
        ${references.map(
          (one, index) =>
            html`<li class=${`hue-${index % 8}`}>
              ${
                one.reference
                  ? html`<${Picture}
                      path=${`uploads/${String([one.reference].flat()[0]).slice(7)}`}
                      alt=${t("reference", { number: index + 1 })}
                    />`
                  : html`<${Icon} name=${one.style ? "bookmark" : "layers"} />`
              }
              <span
                >${one.style || one.preset || t(halfOf(one.adapter) ? `of_${halfOf(one.adapter)}` : "everything")}${" "}<b
                  >${typeof one.scale === "object" ? t("bySite") : one.scale}</b
                ></span
              >
            </li>`,
        )}
      </ul>`
    }
    <div class="actions">
      <${Button}
        icon="reuse"
        label=${t("useThis")}
        text
        class="primary"
        onClick=${() => reuse(picture)}
      />
      <${Button}
        icon="picture"
        label=${t("asReferencePicture")}
        onClick=${() => tell(async () => addReferences([await fileOf(picture)]))}
      />
      <${Button} icon="start" label=${t("asStart")} onClick=${() => startFrom(picture)} />
      <a
        class="button short"
        href=${picture.url.replace(/^\//, "")}
        download=${`imageprompt-${picture.seed}.png`}
        onClick=${download(picture)}
        ><${Icon} name="save" /><span>${t("save")}</span></a
      >
      <${Button}
        icon="compare"
        label=${t("compare")}
        text
        class="short"
        onClick=${() => markForCompare(picture)}
        aria-pressed=${state.compare.includes(picture.id)}
      />
      <${Button} icon="trash" label=${t("deletePicture")} onClick=${() => remove(picture)} />
    </div>
  </section>`;
}

const fileOf = async (picture) =>
  (
    await call("GET", `jobs/${picture.job}/result/${picture.index}.png`, null, { raw: true })
  ).blob();

const startFrom = (picture) =>
  tell(async () => {
    const hash = await keepPicture(await fileOf(picture));
    if (!hash) return;
    setForm({ start: hash, inpaint: "" });
    set({ tab: "compose" });
    say(t("startPicture"));
  });

const download = (picture) => async (event) => {
  event.preventDefault();
  const link = Object.assign(document.createElement("a"), {
    href: await pictureUrl(picture.url),
    download: `imageprompt-${picture.seed}.png`,
  });
  link.click();
};

function markForCompare(picture) {
  const marked = state.compare.filter((id) => id !== picture.id && pictureOf(id));
  if (marked.length) set({ compare: [marked.at(-1), picture.id], view: "compare" });
  else set({ compare: [picture.id], toast: { text: t("chooseSecond") }, panel: "gallery" });
}

export function Stage() {
  const { view } = state;
  if (view === "paint" && state.paint) {
    const last = selected() || state.pictures[0];
    const [width, height] = size();
    const same = last && Math.abs(last.width / last.height - width / height) < 0.01;
    state.paint.over ??= same ? last.url : "";
    return html`<${Painter} key=${state.paint.title} />`;
  }
  if (view === "sweep") return html`<${Sweep} />`;
  if (view === "compare" && state.compare.length === 2) return html`<${Compare} />`;
  const job = state.jobs.find((one) => one.state === "running") || state.jobs[0];
  const picture = selected() || (!job && !state.fresh ? state.pictures[0] : null);
  const masked = active().some((one) => one.mask);
  const bar = html`<div class="bar">
      <strong>${picture ? t("made") : job ? t("making") : t("canvasTitle")}</strong
      ><span class="end">
        ${
          masked &&
          html`<${Button}
            icon="layers"
            label=${t("showMasks")}
            text
            aria-pressed=${state.showMasks}
            onClick=${() => set({ showMasks: !state.showMasks })}
          />`
        }
        <${Button} icon="grid" label=${t("sweep")} text onClick=${() => set({ view: "sweep" })}
      /></span>
    </div>
    <${Progress} class="phone" />`;
  if (picture) {
    return html`${bar}<${Fit} width=${picture.width} height=${picture.height}>
        <${Picture} path=${picture.url} alt=${picture.request.prompt || t("picture")} />
        ${masked && state.showMasks && html`<div class="masks"><${Masks} /></div>`}<//
      >${picture.request.workflow && html`<${Report} picture=${picture} />`}<${Recipe} picture=${picture} />`;
  }
  return html`${bar}${job ? html`<${Running} job=${job} />` : html`<${Empty} />`}`;
}
