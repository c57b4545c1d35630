"use strict";
// Pictures open larger: the embedded one first, then the file beside this page if it is there.
const box = document.querySelector("dialog"), large = box.querySelector("img"), words = box.querySelector("p");
let all = [], at = 0;
function show(index) {
  at = (index + all.length) % all.length;
  const button = all[at], small = button.querySelector("img"), file = button.dataset.file;
  large.src = small.src;
  large.alt = small.alt;
  words.textContent = button.dataset.about;
  if (file) {
    const whole = new Image();
    whole.onload = () => { if (all[at] === button) large.src = whole.src; };
    whole.src = file;
  }
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.picture");
  if (button) {
    all = [...button.closest("[data-pictures]").querySelectorAll("button.picture")];
    show(all.indexOf(button));
    box.showModal();
  } else if (event.target === box || event.target === large) box.close();
});
box.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) { show(at + step); event.preventDefault(); }
});
// The section that is read is marked in the head.
const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) {
    for (const link of links.values()) link.classList.remove("here");
    links.get(entry.target.id)?.classList.add("here");
  }
}, { rootMargin: "-20% 0px -70% 0px" });
for (const section of document.querySelectorAll("section[id]")) seen.observe(section);
