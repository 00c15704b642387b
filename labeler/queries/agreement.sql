-- how far the second look at the mirrored image agrees with the first: IoU per part, and how often it is below one half
select label_run, dataset, part, count(*) as labels,
    count(agreement) as compared,
    round(avg(agreement), 4) as mean_agreement,
    round(median(agreement), 4) as median_agreement,
    round(100.0 * count(*) filter (agreement < 0.5) / nullif(count(agreement), 0), 2) as below_half_percent,
    round(corr(agreement, score), 3) as with_score
from labels
group by label_run, dataset, part
order by label_run, dataset, part
