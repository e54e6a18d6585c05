// MathJax from this site, and only on pages that have mathematics.
(() => {
  const here = document.currentScript.src;
  if (!document.querySelector(".arithmatex")) return;
  window.MathJax = {
    tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]] },
    options: { ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex", enableMenu: false },
    svg: { fontCache: "global" },
  };
  const script = document.createElement("script");
  script.src = new URL("tex-svg.js", here).href;
  document.head.append(script);
})();
