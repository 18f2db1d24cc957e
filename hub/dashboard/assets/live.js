"use strict";
// The page sends only the scores that are new; the browser keeps the last two minutes and draws them.
Object.assign(window.lineside, (() => {
  let kept = [];

  function series(name, colour, data) {
    return {
      id: name, name, type: "line", stack: "share", step: "middle", symbol: "none", data,
      lineStyle: { width: 0 }, areaStyle: { color: colour, opacity: 0.8 }, itemStyle: { color: colour },
    };
  }

  function feed(news) {
    if (news.fresh) kept = [];
    kept.push(...news.points);
    kept.sort((a, b) => a.ms - b.ms);
    kept = kept.filter((point) => point.ms >= news.now - news.span && point.ms <= news.now + 5000);
    const score = getElement(news.score)?.chart;
    const share = getElement(news.share)?.chart;
    if (!score || !share) return setTimeout(() => feed({ ...news, points: [], fresh: false }), 200);
    const xAxis = { min: news.now - news.span, max: news.now };
    score.setOption({
      xAxis,
      series: [
        { id: "score", data: kept.map((p) => [p.ms, p.score]) },
        { id: "limit", data: kept.map((p) => [p.ms, p.limit]) },
        { id: "beyond", data: kept.filter((p) => p.score >= p.limit).map((p) => [p.ms, p.score]) },
      ],
    });
    const names = Object.keys(news.colours);
    share.setOption(
      {
        xAxis,
        legend: { data: names },
        series: names.map((name) =>
          series(name, news.colours[name], kept.map((p) => [p.ms, Math.max(0, p.shares[name] ?? 0)]))),
      },
      { replaceMerge: news.fresh ? ["series"] : [] },
    );
  }

  return { feed };
})());
