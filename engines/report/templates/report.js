// Turns each strip of frames into a before/after slider. Without it, the frames stay side by side.
"use strict";
for (const strip of document.querySelectorAll(".strip[data-slider]")) {
  const figures = [...strip.querySelectorAll("figure")];
  if (figures.length < 2) continue;
  const names = figures.map((figure) => figure.querySelector("figcaption").textContent);
  const make = (tag, properties) => Object.assign(document.createElement(tag), properties);
  const box = make("div", { className: "slider" });
  const images = ["before", "after"].map((side) => make("img", { className: side }));
  const range = make("input", { type: "range", min: 0, max: 100, value: 50 });
  range.setAttribute("aria-label", "Share of the frame shown as before, in percent");
  const menus = images.map((image, side) => {
    const menu = make("select");
    names.forEach((name) => menu.append(make("option", { textContent: name })));
    menu.setAttribute("aria-label", side ? "After" : "Before");
    menu.selectedIndex = side ? Number(strip.dataset.after) : Number(strip.dataset.before);
    const show = () => {
      const shown = figures[menu.selectedIndex].querySelector("img");
      image.src = shown.src;
      image.alt = shown.alt;
    };
    menu.addEventListener("change", show);
    show();
    return menu;
  });
  const cut = () => box.style.setProperty("--cut", range.value + "%");
  range.addEventListener("input", cut);
  cut();
  const view = make("div", { className: "view" });
  view.append(...images, make("div", { className: "edge" }));
  const row = make("div", { className: "menus" });
  row.append(...menus);
  box.append(view, range, row);
  strip.before(box);
}
