"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const files = JSON.parse($("files").textContent);
  const items = new Map(data.items.map((item) => [item.id, item]));
  const pairs = data.mode === "pairs";
  const EQUAL = "equal", FORMAT = "imageprompt-ratings", VERSION = 1;
  const STORE = `imageprompt-rate ${data.study} `;
  document.body.classList.toggle("scaled", !pairs);

  // ── the order of a rater ──────────────────────────────────────────────────────────────────────
  // Drawn from the study and the name alone, so that an answer file and this page always agree.

  function numbers(text) {
    let state = 2166136261;
    for (const unit of new TextEncoder().encode(text)) state = Math.imul(state ^ unit, 16777619);
    state = state >>> 0 || 1;
    const next = () => {
      state ^= state << 13; state ^= state >>> 17; state ^= state << 5;
      return (state >>> 0) / 2 ** 32;
    };
    for (let i = 0; i < 16; i++) next();
    return next;
  }

  function drawOrder(rater) {
    const random = numbers(`${data.study} ${rater}`);
    const order = data.items.map((item) => ({ item: item.id, repeat: false, flipped: random() < 0.5 }));
    for (let i = order.length - 1; i > 0; i--) {
      const j = Math.floor(random() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    const count = Math.max(1, Math.round(data.repeated * order.length));
    const early = order.slice(0, Math.max(1, Math.ceil(order.length * 0.6)));
    for (let i = 0; i < count && early.length; i++) {
      const [first] = early.splice(Math.floor(random() * early.length), 1);
      const from = Math.min(order.indexOf(first) + 6, order.length);
      const place = from + Math.floor(random() * (order.length - from + 1));
      order.splice(place, 0, { item: first.item, repeat: true, flipped: !first.flipped });
    }
    return order;
  }

  // ── answers ───────────────────────────────────────────────────────────────────────────────────

  let rater = "", order = [], answers = new Map(), at = 0, since = 0, stored = true;
  const keyOf = (entry) => `${entry.item} ${entry.repeat}`;
  const current = () => order[at];
  const isAnswered = (entry) => answers.has(keyOf(entry));
  const answered = () => order.filter(isAnswered).length;

  function exported() {
    return {
      format: FORMAT, version: VERSION, study: data.study, mode: data.mode, rater,
      complete: answered() === order.length,
      answers: order.filter(isAnswered).map((entry) => answers.get(keyOf(entry))),
    };
  }

  function store() {
    try {
      localStorage.setItem(STORE + rater, JSON.stringify(exported()));
    } catch {
      stored = false;
    }
  }

  function storedRaters() {
    try {
      return Object.keys(localStorage).filter((name) => name.startsWith(STORE))
        .map((name) => name.slice(STORE.length)).sort();
    } catch {
      stored = false;
      return [];
    }
  }

  function storedAnswers(name) {
    try {
      return JSON.parse(localStorage.getItem(STORE + name));
    } catch {
      return null;
    }
  }

  function checked(found) {
    // The answers of a file or of the browser's memory that this page could have given.
    if (!found || found.format !== FORMAT) throw "This file holds no answers.";
    if (found.study !== data.study || found.mode !== data.mode) throw "These answers are of another page.";
    if (typeof found.rater !== "string" || !Array.isArray(found.answers)) throw "This file is damaged.";
    return found.answers.filter((answer) => {
      const item = answer && items.get(answer.item);
      if (!item || typeof answer.repeat !== "boolean") return false;
      if (pairs) return item.pictures.concat(EQUAL).includes(answer.choice) && item.pictures.includes(answer.left);
      return answer.scores && axesOf(item).every((axis) => [1, 2, 3, 4, 5].includes(answer.scores[axis.name]));
    });
  }

  function begin(name, found) {
    rater = name.trim().normalize("NFC");
    if (!rater) return;
    order = drawOrder(rater);
    answers = new Map();
    for (const known of [storedAnswers(rater), found]) {
      if (known) for (const answer of checked(known)) answers.set(keyOf(answer), answer);
    }
    store();
    const open = order.findIndex((entry) => !isAnswered(entry));
    open < 0 ? show("done") : ask(open);
  }

  function save() {
    const link = document.createElement("a");
    const blob = new Blob([JSON.stringify(exported(), null, 1)], { type: "application/json" });
    link.href = URL.createObjectURL(blob);
    link.download = `ratings-${data.study}-${rater.replace(/[^\p{L}\p{N}_-]+/gu, "_")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // ── what is shown ─────────────────────────────────────────────────────────────────────────────

  function show(name) {
    for (const id of ["welcome", "question", "done"]) $(id).hidden = id !== name;
    $("save").hidden = name !== "question";
    $("title").style.visibility = name === "welcome" ? "hidden" : "";
    const count = answered(), total = order.length;
    $("count").textContent = total ? `${count} of ${total}` : "";
    $("progress").firstElementChild.style.width = total ? `${(100 * count) / total}%` : "0";
    $("progress").setAttribute("aria-valuemax", total);
    $("progress").setAttribute("aria-valuenow", count);
    scrollTo(0, 0);
  }

  function axesOf(item) {
    const has = { reference: item.reference !== null, prompt: item.text !== "", "": true };
    return data.axes.filter((axis) => has[axis.needs]);
  }

  function ask(place) {
    at = place;
    $("question").dataset.place = place;
    since = performance.now();
    const entry = current(), item = items.get(entry.item);
    $("reference").hidden = item.reference === null;
    if (item.reference !== null) $("reference").querySelector("img").src = files[item.reference];
    $("text").textContent = item.text;
    $("request").hidden = item.reference === null && !item.text;
    $("asked").textContent = pairs ? data.question : "";
    $("back").disabled = at === 0;
    $("equal").hidden = !pairs;
    $("next").hidden = pairs;
    const shown = entry.flipped ? [...item.pictures].reverse() : item.pictures;
    $("pictures").replaceChildren(...shown.map((id, side) => pictureOf(id, side)));
    $("scales").replaceChildren(...(pairs ? [] : axesOf(item).map(scaleOf)));
    $("equal").classList.remove("main");
    const known = answers.get(keyOf(entry));
    if (known && pairs) mark(known.choice);
    if (known && !pairs) for (const [axis, score] of Object.entries(known.scores)) setScore(axis, score);
    focusAxis();
    show("question");
  }

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function pictureOf(id, side) {
    const name = pairs ? ["left", "right"][side] : "to be rated";
    const image = element("img", { className: "shown", src: files[id], alt: `The picture ${name}`, draggable: false });
    const magnify = element("button", { type: "button", className: "magnify", title: "Enlarge", tabIndex: -1 });
    magnify.innerHTML = '<svg width="18" height="18" viewBox="0 0 18 18" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round"><circle cx="7.5" cy="7.5" r="5"/><path d="m11.5 11.5 4.5 4.5"/></svg>';
    magnify.addEventListener("click", () => enlarge(files[id]));
    if (!pairs) return element("div", { className: "picture" }, image, magnify);
    const choose = element("button", { type: "button", className: "choose" }, image, element("kbd", { textContent: ["←", "→"][side] }));
    choose.dataset.id = id;
    choose.setAttribute("aria-label", `The picture ${name} is better`);
    choose.addEventListener("click", () => prefer(id));
    return element("div", { className: "picture" }, choose, magnify);
  }

  function enlarge(source) {
    $("zoom").querySelector("img").src = source;
    $("zoom").showModal();
  }

  // ── pairs ─────────────────────────────────────────────────────────────────────────────────────

  const sides = () => [...document.querySelectorAll(".choose")].map((one) => one.dataset.id);
  const seconds = () => Math.round((performance.now() - since) / 100) / 10;
  let moving = 0;

  function mark(choice) {
    for (const one of document.querySelectorAll(".choose")) one.classList.toggle("chosen", one.dataset.id === choice);
    $("equal").classList.toggle("main", choice === EQUAL);
  }

  function prefer(choice) {
    if (moving) return;
    const { item, repeat } = current();
    answers.set(keyOf(current()), { item, repeat, left: sides()[0], choice, seconds: seconds() });
    store();
    mark(choice);
    moving = setTimeout(advance, 160);
  }

  function advance() {
    moving = 0;
    if (at + 1 < order.length && answered() < order.length) {
      let place = at + 1;
      while (place < order.length - 1 && isAnswered(order[place])) place++;
      if (isAnswered(order[place])) place = order.findIndex((entry) => !isAnswered(entry));
      ask(place);
    } else if (answered() < order.length) ask(order.findIndex((entry) => !isAnswered(entry)));
    else show("done");
  }

  function back() {
    if (moving) return;
    if (!$("done").hidden) ask(order.length - 1);
    else if (!$("question").hidden && at > 0) ask(at - 1);
  }

  // ── scales ────────────────────────────────────────────────────────────────────────────────────

  function scaleOf(axis) {
    const points = axis.anchors.map((words, index) => element("label", {},
      element("input", { type: "radio", name: axis.name, value: index + 1 }),
      element("b", { textContent: index + 1 }), words));
    const field = element("fieldset", {},
      element("legend", {}, element("b", { textContent: axis.title }), " ", element("span", { textContent: axis.question })),
      element("div", { className: "points" }, ...points));
    field.dataset.axis = axis.name;
    field.addEventListener("change", focusAxis);
    return field;
  }

  const fields = () => [...document.querySelectorAll("fieldset")];
  const scoreOf = (field) => Number(field.querySelector(":checked")?.value ?? 0);

  function setScore(axis, score) {
    const input = document.querySelector(`fieldset[data-axis="${axis}"] input[value="${score}"]`);
    if (input) input.checked = true;
  }

  function focusAxis() {
    // The first scale without a point is the one that digits set.
    const open = fields().find((field) => !scoreOf(field));
    for (const field of fields()) field.classList.toggle("here", field === open);
    $("next").disabled = Boolean(open);
  }

  function next() {
    if (pairs || moving || fields().some((field) => !scoreOf(field))) return;
    const { item, repeat } = current();
    const scores = Object.fromEntries(fields().map((field) => [field.dataset.axis, scoreOf(field)]));
    answers.set(keyOf(current()), { item, repeat, scores, seconds: seconds() });
    store();
    advance();
  }

  // ── keys and buttons ──────────────────────────────────────────────────────────────────────────

  function onKey(event) {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || $("zoom").open) return;
    if (event.key === "Backspace" && $("welcome").hidden) {
      event.preventDefault();
      return back();
    }
    if ($("question").hidden) return;
    if (pairs) {
      const [left, right] = sides();
      const choice = { ArrowLeft: left, 1: left, ArrowRight: right, 2: right, ArrowDown: EQUAL, 0: EQUAL, "=": EQUAL }[event.key];
      if (choice) {
        event.preventDefault();
        prefer(choice);
      }
    } else if (/^[1-5]$/.test(event.key)) {
      const open = fields().find((field) => !scoreOf(field));
      if (open) setScore(open.dataset.axis, event.key);
      focusAxis();
    } else if (event.key === "Enter" && event.target.tagName !== "BUTTON") {
      event.preventDefault();
      next();
    }
  }

  function welcome() {
    const count = data.items.length + Math.max(1, Math.round(data.repeated * data.items.length));
    $("what").textContent = pairs
      ? `You will see two pictures ${count} times. Choose the better answer to the request, or “equal”.`
      : `You will see ${count} pictures. Rate each on a few scales of five points.`;
    const how = [
      data.items.some((item) => item.reference !== null) && "The request is the reference picture on top" + (data.items.some((item) => item.text) ? ", with the text beside it." : "."),
      !data.items.some((item) => item.reference !== null) && data.items.some((item) => item.text) && "The request is the text on top.",
      !matchMedia("(hover: none)").matches && (pairs ? "Keys: ← and → choose, ↓ is “equal”, ⌫ goes back." : "Keys: 1 to 5 set the next scale, ↵ goes on, ⌫ goes back."),
      "Some questions come twice. Do not try to remember what you said.",
      "You can stop at any time and go on later in the same browser.",
    ];
    $("how").replaceChildren(...how.filter(Boolean).map((text) => element("li", { textContent: text })));
    const known = storedRaters();
    $("known").replaceChildren(...(known.length ? ["Go on as "] : []), ...known.map((name) => {
      const button = element("button", { type: "button", textContent: name });
      button.addEventListener("click", () => guarded(() => begin(name)));
      return button;
    }));
    if (!stored) notice("This browser keeps nothing for this page. Save your answers before you close it.");
    show("welcome");
  }

  function notice(text) {
    $("notice").textContent = text;
    $("notice").hidden = false;
  }

  function guarded(action) {
    try {
      action();
    } catch (problem) {
      notice(typeof problem === "string" ? problem : "This file is damaged.");
    }
  }

  $("start").addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(() => begin($("rater").value));
  });
  $("import").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    const text = file ? await file.text() : "";
    event.target.value = "";
    guarded(() => {
      const found = JSON.parse(text);
      checked(found);
      begin(found.rater, found);
    });
  });
  $("save").addEventListener("click", save);
  $("save-all").addEventListener("click", save);
  $("review").addEventListener("click", back);
  $("back").addEventListener("click", back);
  $("equal").addEventListener("click", () => prefer(EQUAL));
  $("next").addEventListener("click", next);
  $("reference").querySelector("img").addEventListener("click", (event) => enlarge(event.target.src));
  addEventListener("keydown", onKey);
  addEventListener("beforeunload", (event) => {
    if (!stored && answers.size) event.preventDefault();
  });
  welcome();
})();
